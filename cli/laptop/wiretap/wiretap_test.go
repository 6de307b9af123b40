package wiretap

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/pkg/netns"
)

// TestStreams: segments in any order, twice, and overlapping make one stream.
func TestStreams(t *testing.T) {
	t.Parallel()
	s := &stream{next: 100, ahead: map[uint32][]byte{}}
	s.add(104, []byte("efgh"))
	s.add(100, []byte("abcd"))
	s.add(102, []byte("cdefgh"))
	s.add(110, []byte("late"))
	s.add(108, []byte("ij"))
	if got := string(s.data); got != "abcdefghijlate" {
		t.Errorf("stream %q", got)
	}
}

// TestTap captures TLS 1.3, TLS 1.2 and plain text on the loopback of a
// namespace and tells them apart.
func TestTap(t *testing.T) {
	ns, tap := openTap(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- tap.Run(ctx) }()
	exchange(t, ns, 7001, "secret one", tls.VersionTLS13)
	exchange(t, ns, 7002, "secret two", tls.VersionTLS12)
	exchange(t, ns, 7003, "secret three", 0)
	for tap.Contains("secret three") == 0 {
		time.Sleep(time.Millisecond) // captured packets arrive in their own time
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if n := tap.Contains("secret one") + tap.Contains("secret two"); n != 0 {
		t.Errorf("%d streams carry what was encrypted", n)
	}
	if r := tap.TLS(7001); r.Connections != 1 || r.TLS13 != 1 || r.Records < 3 || len(r.Others) != 0 {
		t.Errorf("TLS 1.3: %+v", r)
	}
	if r := tap.TLS(7002); r.Connections != 1 || r.TLS13 != 0 || len(r.Others) != 1 {
		t.Errorf("TLS 1.2: %+v", r)
	}
	if r := tap.TLS(7003); r.Connections != 1 || r.TLS13 != 0 {
		t.Errorf("plain text: %+v", r)
	}
	if tap.Seen().Packets == 0 {
		t.Error("nothing was seen")
	}
}

// TestTapEnds: what has crossed the link before the end is read, however late its turn
// comes.
func TestTapEnds(t *testing.T) {
	ns, tap := openTap(t)
	exchange(t, ns, 7003, "the last words", 0)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := tap.Run(ctx); err != nil {
		t.Error(err)
	}
	if tap.Contains("the last words") == 0 {
		t.Error("they were not read")
	}
}

// openTap opens a tap on the loopback of a namespace of its own.
func openTap(t *testing.T) (*netns.NS, *Tap) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("needs root, to make network namespaces: run the tests with sudo")
	}
	ns, err := netns.NewUnnamed()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	tap, err := Open(ns, "lo")
	if err != nil {
		t.Fatal(err)
	}
	return ns, tap
}

// exchange sends a message to an echoing server over TLS, or plain for version 0.
func exchange(t *testing.T, ns *netns.NS, port uint16, message string, version uint16) {
	t.Helper()
	at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)
	l, err := ns.Listen(t.Context(), at, netns.ListenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cfg := &tls.Config{Certificates: []tls.Certificate{certificate(t)}, MinVersion: version, MaxVersion: version, InsecureSkipVerify: true}
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		if version != 0 {
			c = tls.Server(c, cfg)
		}
		io.CopyN(c, c, int64(len(message)))
	}()
	var c net.Conn
	if c, err = ns.Dial(t.Context(), at, netns.DialOptions{}); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if version != 0 {
		c = tls.Client(c, cfg)
	}
	if _, err := io.WriteString(c, message); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(message))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != message {
		t.Fatalf("%q, %v", got, err)
	}
}

func certificate(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func FuzzTLS(f *testing.F) {
	f.Add([]byte{22, 3, 3, 0, 4, 2, 0, 0, 0})
	f.Add(bytes.Repeat([]byte{22, 3, 3, 0, 0}, 20))
	f.Fuzz(func(t *testing.T, b []byte) {
		records(b)
		helloVersion(b)
	})
}
