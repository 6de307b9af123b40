package tlsconn_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/culvert-mesh/culvert/pkg/hbone/hbonetest"
	"github.com/culvert-mesh/culvert/pkg/reason"
	"github.com/culvert-mesh/culvert/pkg/tlsconn"
)

var clientID, serverID = hbonetest.Identity("client"), hbonetest.Identity("server")

// pair returns both ends of a TLS connection over TCP.
func pair(t testing.TB) (client, server *tlsconn.Conn, a, b *net.TCPConn) {
	t.Helper()
	ca := hbonetest.NewCA(t)
	a, b = hbonetest.TCPPair(t)
	done := make(chan error, 1)
	go func() {
		var err error
		server, err = tlsconn.Server(context.Background(), b, ca.Server(t, serverID))
		done <- err
	}()
	client, err := tlsconn.Client(context.Background(), a, ca.Client(t, clientID, serverID))
	if err := errors.Join(err, <-done); err != nil {
		t.Fatal(err)
	}
	return client, server, a, b
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	client, server, _, _ := pair(t)
	msg := make([]byte, 5<<20+123)
	_, _ = rand.Read(msg)
	go func() {
		for p := msg; len(p) > 0; {
			n := min(len(p), 1+len(p)/3)
			if _, err := client.Write(p[:n]); err != nil {
				t.Error(err)
				return
			}
			p = p[n:]
		}
		_ = client.CloseWrite()
	}()
	got, err := io.ReadAll(server)
	if err != nil || !bytes.Equal(got, msg) {
		t.Errorf("%d bytes of %d, %v", len(got), len(msg), err)
	}
}

// Against crypto/tls itself, in both roles, with reads of every size.
func TestAgainstCryptoTLS(t *testing.T) {
	t.Parallel()
	ca := hbonetest.NewCA(t)
	a, b := hbonetest.TCPPair(t)
	plain := tls.Server(b, ca.Server(t, serverID))
	go func() {
		_, _ = io.Copy(plain, plain)
		_ = plain.CloseWrite()
	}()
	c, err := tlsconn.Client(context.Background(), a, ca.Client(t, clientID, serverID))
	if err != nil {
		t.Fatal(err)
	}
	msg := make([]byte, 1<<20)
	_, _ = rand.Read(msg)
	go func() {
		for _, p := range [][]byte{msg[:10], msg[10:20000], msg[20000:]} {
			_, _ = c.Write(p)
		}
		_ = c.CloseWrite()
	}()
	var got []byte
	for size := 1; ; size = size*3%70_001 + 1 {
		p := make([]byte, size)
		n, err := c.ReadBatch(p)
		got = append(got, p[:n]...)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(got, msg) {
		t.Errorf("%d bytes of %d", len(got), len(msg))
	}
}

// countingConn counts socket writes.
type countingConn struct {
	net.Conn
	writes int
}

func (c *countingConn) Write(p []byte) (int, error) { c.writes++; return c.Conn.Write(p) }

// 128 KiB leave in one socket write and, once arrived, are read in one call.
func TestBatches(t *testing.T) {
	t.Parallel()
	ca := hbonetest.NewCA(t)
	a, b := hbonetest.TCPPair(t)
	counting := &countingConn{Conn: a}
	made := make(chan *tlsconn.Conn, 1)
	go func() {
		s, err := tlsconn.Server(context.Background(), b, ca.Server(t, serverID))
		if err != nil {
			t.Error(err)
		}
		made <- s
	}()
	client, err := tlsconn.ClientOver(context.Background(), counting, ca.Client(t, clientID, serverID))
	if err != nil {
		t.Fatal(err)
	}
	server := <-made
	counting.writes = 0
	if _, err := client.Write(make([]byte, 128<<10)); err != nil {
		t.Fatal(err)
	}
	if counting.writes != 1 {
		t.Errorf("%d socket writes", counting.writes)
	}
	buf := make([]byte, 256<<10)
	reads, total := 0, 0
	for total < 128<<10 {
		n, err := server.ReadBatch(buf)
		if err != nil {
			t.Fatal(err)
		}
		total += n
		reads++
	}
	if reads > 4 {
		t.Errorf("%d reads for 128 KiB", reads)
	}
}

// Half a record does not make ReadBatch wait with what came before it.
func TestPartialRecord(t *testing.T) {
	t.Parallel()
	ca := hbonetest.NewCA(t)
	var held bytes.Buffer
	holding := false
	a, b := net.Pipe()
	tap := &tapConn{Conn: a, hold: &holding, held: &held}
	made := make(chan *tlsconn.Conn, 1)
	go func() {
		s, err := tlsconn.ServerOver(context.Background(), b, ca.Server(t, serverID))
		if err != nil {
			t.Error(err)
		}
		made <- s
	}()
	client, err := tlsconn.ClientOver(context.Background(), tap, ca.Client(t, clientID, serverID))
	if err != nil {
		t.Fatal(err)
	}
	server := <-made
	holding = true
	_, _ = client.Write([]byte("first"))
	_, _ = client.Write([]byte("second"))
	cipher := held.Bytes()
	go func() { _, _ = a.Write(cipher[:len(cipher)-3]) }()
	buf := make([]byte, 100)
	if n, err := server.ReadBatch(buf); err != nil || string(buf[:n]) != "first" {
		t.Fatalf("%q, %v", buf[:n], err)
	}
	go func() { _, _ = a.Write(cipher[len(cipher)-3:]) }()
	if n, err := server.ReadBatch(buf); err != nil || string(buf[:n]) != "second" {
		t.Fatalf("%q, %v", buf[:n], err)
	}
	_ = a.Close()
	if _, err := server.ReadBatch(buf); err == nil {
		t.Error("read after the end")
	}
}

// tapConn keeps what is written instead of sending it, once told to.
type tapConn struct {
	net.Conn
	hold *bool
	held *bytes.Buffer
}

func (c *tapConn) Write(p []byte) (int, error) {
	if *c.hold {
		return c.held.Write(p)
	}
	return c.Conn.Write(p)
}

// Data and the end in one gulp are both delivered.
func TestEndBehindData(t *testing.T) {
	t.Parallel()
	client, server, _, _ := pair(t)
	_, _ = client.Write([]byte("last words"))
	_ = client.CloseWrite()
	if got, err := io.ReadAll(server); string(got) != "last words" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := server.Write([]byte("answer")); err != nil {
		t.Error(err)
	}
	_ = server.CloseWrite()
	if got, err := io.ReadAll(client); string(got) != "answer" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	for range 2 {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	}
}

// The end of TLS that came behind data is noticed by Wait, though the peer's
// socket stays open.
func TestEndWithoutFIN(t *testing.T) {
	t.Parallel()
	ca := hbonetest.NewCA(t)
	a, b := hbonetest.TCPPair(t)
	peer := tls.Client(b, ca.Client(t, clientID, serverID))
	shook := make(chan error, 1)
	go func() { shook <- peer.Handshake() }()
	server, err := tlsconn.Server(context.Background(), a, ca.Server(t, serverID))
	if err := errors.Join(err, <-shook); err != nil {
		t.Fatal(err)
	}
	_, _ = peer.Write([]byte("last words"))
	_ = peer.CloseWrite() // close_notify, no FIN
	_ = server.SetReadDeadline(time.Now().Add(2 * time.Minute))
	buf := make([]byte, 100)
	var got []byte
	for {
		if err := server.Wait(); err != nil {
			t.Fatalf("wait: %v", err)
		}
		n, err := server.ReadBatch(buf)
		got = append(got, buf[:n]...)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if string(got) != "last words" {
		t.Errorf("read %q", got)
	}
}

func TestDeadline(t *testing.T) {
	t.Parallel()
	client, server, _, _ := pair(t)
	_ = server.SetReadDeadline(time.Now().Add(time.Millisecond))
	if _, err := server.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read: %v", err)
	}
	_ = server.SetReadDeadline(time.Time{})
	_, _ = client.Write([]byte("x"))
	if n, err := server.Read(make([]byte, 1)); n != 1 || err != nil {
		t.Errorf("read after the deadline: %d, %v", n, err)
	}
}

// A handshake with a peer that says nothing ends with its context.
func TestHandshakeContext(t *testing.T) {
	ca := hbonetest.NewCA(t)
	cfg := ca.Client(t, clientID, serverID)
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		go func() { _, _ = io.Copy(io.Discard, b) }()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := tlsconn.ClientOver(ctx, a, cfg); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("handshake: %v", err)
		}
		_ = b.Close()
	})
}

// The verification's own error comes through.
func TestIdentityMismatch(t *testing.T) {
	t.Parallel()
	ca := hbonetest.NewCA(t)
	a, b := hbonetest.TCPPair(t)
	go func() { _, _ = tlsconn.Server(context.Background(), b, ca.Server(t, serverID)) }()
	_, err := tlsconn.Client(context.Background(), a, ca.Client(t, clientID, hbonetest.Identity("else")))
	if reason.Of(err) != reason.IdentityMismatch {
		t.Errorf("handshake: %v", err)
	}
}

// Whatever arrives instead of TLS, the handshake fails and does not panic.
func FuzzGarbage(f *testing.F) {
	ca := hbonetest.NewCA(f)
	cfg := ca.Server(f, serverID)
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Add([]byte{22, 3, 1, 255, 255, 1, 0, 0})
	f.Add([]byte{23, 3, 3, 0, 0})
	f.Fuzz(func(t *testing.T, p []byte) {
		a, b := net.Pipe()
		go func() {
			_, _ = a.Write(p)
			_ = a.Close()
		}()
		if c, err := tlsconn.ServerOver(context.Background(), b, cfg); err == nil {
			_ = c.Close()
			t.Error("garbage made a connection")
		}
		_ = a.Close()
	})
}
