package proxy

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/culvert-mesh/culvert/pkg/accesslog"
	"github.com/culvert-mesh/culvert/pkg/certs"
	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/pkg/hbone/h2"
	"github.com/culvert-mesh/culvert/pkg/hbone/hbonetest"
	"github.com/culvert-mesh/culvert/pkg/logging"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/metrics"
	"github.com/culvert-mesh/culvert/pkg/netns"
	"github.com/culvert-mesh/culvert/pkg/netns/netnstest"
	"github.com/culvert-mesh/culvert/pkg/workloads"
)

// testCA signs whatever a test wants, valid or not.
type testCA struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newTestCA(t *testing.T) *testCA {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &testCA{t: t, key: key}
	ca.cert = ca.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: "test root"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}, &key.PublicKey)
	return ca
}

func (ca *testCA) sign(template *x509.Certificate, pub *ecdsa.PublicKey) *x509.Certificate {
	ca.t.Helper()
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	parent := ca.cert
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, ca.key)
	if err != nil {
		ca.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		ca.t.Fatal(err)
	}
	return cert
}

// svid makes a certificate to present that is valid until a time from now.
func (ca *testCA) svid(uri string, until time.Duration) *certs.SVID {
	ca.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		ca.t.Fatal(err)
	}
	san, err := url.Parse(uri)
	if err != nil {
		ca.t.Fatal(err)
	}
	leaf := ca.sign(&x509.Certificate{
		URIs: []*url.URL{san}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		NotBefore:   time.Now().Add(-30 * time.Minute), NotAfter: time.Now().Add(until),
	}, &key.PublicKey)
	id, _ := mesh.ParseIdentity(uri)
	return &certs.SVID{
		ID: id, Leaf: tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf},
		Chain: []*x509.Certificate{leaf},
	}
}

// server makes a certificate that also verifies its peers.
func (ca *testCA) server(uri string) *certs.SVID {
	ca.t.Helper()
	s := ca.svid(uri, time.Hour)
	chain := []string{string(certs.EncodePEM(s.Chain...)), string(certs.EncodePEM(ca.cert))}
	s, err := certs.ParseSVID(s.ID, s.Leaf.PrivateKey.(*ecdsa.PrivateKey), chain)
	if err != nil {
		ca.t.Fatal(err)
	}
	return s
}

const clientURI, serverURI = "spiffe://cluster.local/ns/shop/sa/web", "spiffe://cluster.local/ns/shop/sa/db"

// servedPod runs the proxy of a pod whose program is serve, on port 5432, and
// returns the namespace of a client beside it.
func servedPod(t *testing.T, source certs.Source, tunnel *mesh.AppTunnel, serve func(net.Conn)) (server netip.Addr, client *netns.NS) {
	t.Helper()
	pod, client := netnstest.Pair(t)
	server = netnstest.PairA4.Addr()
	node := newNode(t, dbStore(tunnel), source)
	dup, err := pod.Dup()
	if err != nil {
		t.Fatal(err)
	}
	start(t, node.NewPod("uid", dbInfo, dup))
	program(t, pod, serve)
	return server, client
}

// dbStore knows one pod, on the first address of a pair.
func dbStore(tunnel *mesh.AppTunnel) *workloads.Store {
	store := workloads.New()
	store.Apply(workloads.Update{Workloads: []*mesh.Workload{{
		UID: "Kubernetes//Pod/shop/db-0", Name: "db-0", Namespace: "shop", ServiceAccount: "db", TrustDomain: "cluster.local",
		Addresses: []netip.Addr{netnstest.PairA4.Addr()}, Protocol: mesh.HBONE, AppTunnel: tunnel,
	}}})
	return store
}

var dbInfo = mesh.PodInfo{Name: "db-0", Namespace: "shop", ServiceAccount: "db"}

func newNode(t *testing.T, known Mesh, source certs.Source) *Node {
	levels, err := logging.NewLevels("off")
	if err != nil {
		t.Fatal(err)
	}
	return &Node{
		Settings: Settings{Mark: mesh.MarkProxy, IPv6: true, Baggage: true, AppLoopback: true},
		Mesh:     known,
		Certs:    source,
		Metrics:  metrics.NewTCP(prometheus.NewRegistry(), metrics.TCPConfig{}),
		Access:   accesslog.New(io.Discard, logging.Plain, levels),
		Log:      slog.New(slog.DiscardHandler),
	}
}

// start serves a pod until the test is over.
func start(t *testing.T, p *Pod) {
	t.Helper()
	if err := p.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- p.Run(context.Background()) }()
	t.Cleanup(func() {
		p.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func program(t *testing.T, pod *netns.NS, serve func(net.Conn)) {
	l, err := pod.Listen(t.Context(), netip.AddrPortFrom(netip.IPv6Unspecified(), 5432), netns.ListenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serve(c)
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
}

func answerOK(c net.Conn) { io.WriteString(c, "ok") }

// ask opens a tunnel with a certificate and returns what the program says.
func ask(t *testing.T, from *netns.NS, server netip.Addr, svid *certs.SVID) (string, error) {
	t.Helper()
	text, _, err := askAll(t, from, server, svid)
	return text, err
}

// askAll returns the answer to the CONNECT as well.
func askAll(t *testing.T, from *netns.NS, server netip.Addr, svid *certs.SVID) (string, *hbone.Response, error) {
	t.Helper()
	pool := h2.NewPool(h2.PoolConfig{
		Dial: func(ctx context.Context, to netip.AddrPort) (*net.TCPConn, error) {
			return from.Dial(ctx, to, netns.DialOptions{})
		},
		TLS: func(context.Context, hbone.Peer) (*tls.Config, error) {
			return &tls.Config{
				Certificates: []tls.Certificate{svid.Leaf}, InsecureSkipVerify: true, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13,
			}, nil
		},
	})
	defer pool.Close()
	s, resp, err := pool.Open(t.Context(), hbone.Peer{
		Source: svid.ID, Addr: netip.AddrPortFrom(server, mesh.PortHBONE), LocalIP: netnstest.PairB4.Addr(),
	}, hbone.Request{Authority: netip.AddrPortFrom(server, 5432).String()})
	if err != nil {
		return "", nil, err
	}
	defer s.Close()
	text, err := io.ReadAll(s)
	return string(text), resp, err
}

// TestInboundCertificates holds which clients are let in by their certificate.
func TestInboundCertificates(t *testing.T) {
	t.Parallel()
	ca, other := newTestCA(t), newTestCA(t)
	db := ca.server(serverURI)
	server, client := servedPod(t, certs.Fixed{db.ID: db}, nil, answerOK)
	for _, c := range []struct {
		what string
		svid *certs.SVID
		ok   bool
	}{
		{"a valid certificate", ca.svid(clientURI, time.Hour), true},
		{"an expired one", ca.svid(clientURI, -time.Minute), false},
		{"one of another root", other.svid(clientURI, time.Hour), false},
		{"one of another trust domain", ca.svid("spiffe://evil.example/ns/shop/sa/web", time.Hour), false},
		{"one whose name is no identity", ca.svid("spiffe://cluster.local/web", time.Hour), false},
	} {
		text, err := ask(t, client, server, c.svid)
		var status *hbone.StatusError
		switch {
		case c.ok && (err != nil || text != "ok"):
			t.Errorf("%s: %q, %v", c.what, text, err)
		case !c.ok && (err == nil || errors.As(err, &status)):
			t.Errorf("%s is not refused at the handshake: %q, %v", c.what, text, err)
		}
	}
}

// TestAppTunnel holds that a program that asks for it is told, on its own port
// and on loopback, who calls and which address was called.
func TestAppTunnel(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t)
	db := ca.server(serverURI)
	web := ca.svid(clientURI, time.Hour)
	called := netip.AddrPortFrom(netnstest.PairA4.Addr(), 5432)
	want := len(proxyHeader(called, called, web.ID))
	server, client := servedPod(t, certs.Fixed{db.ID: db}, &mesh.AppTunnel{Protocol: mesh.AppTunnelPROXY, Port: 5432}, func(c net.Conn) {
		header := make([]byte, want)
		if _, err := io.ReadFull(c, header); err != nil {
			t.Errorf("PROXY header: %v", err)
		}
		if from := c.RemoteAddr().(*net.TCPAddr).IP; !from.IsLoopback() {
			t.Errorf("the program is called from %s", from)
		}
		c.Write(header)
	})
	got, err := ask(t, client, server, web)
	if err != nil || len(got) != want {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	from, ok := netip.AddrFromSlice([]byte(got[16:20]))
	port := uint16(got[24])<<8 | uint16(got[25])
	if !ok || from != netnstest.PairB4.Addr() {
		t.Errorf("the header tells the client %s", from)
	}
	if header := string(proxyHeader(netip.AddrPortFrom(from, port), called, web.ID)); got != header {
		t.Errorf("header %q, want %q", got, header)
	}
}

// TestPodLeavesNothing holds that a pod that has been served and let go leaves no
// goroutine and no descriptor behind. It does not run beside others.
func TestPodLeavesNothing(t *testing.T) {
	netnstest.New(t) // what the first namespace of a process opens stays open
	spare.hold()
	fds := netnstest.OpenFDs(t)
	t.Run("serve", func(t *testing.T) {
		ca := newTestCA(t)
		db := ca.server(serverURI)
		server, client := servedPod(t, certs.Fixed{db.ID: db}, nil, answerOK)
		for range 20 {
			if text, err := ask(t, client, server, ca.svid(clientURI, time.Hour)); text != "ok" || err != nil {
				t.Fatalf("%q, %v", text, err)
			}
		}
	})
	hbonetest.Until(t, "goroutines to end", func() bool { return hbonetest.Goroutines("proxy.(*Pod)")+hbonetest.Goroutines("h2.(*") == 0 })
	hbonetest.Until(t, "descriptors to be closed", func() bool { return netnstest.OpenFDs(t) <= fds })
}
