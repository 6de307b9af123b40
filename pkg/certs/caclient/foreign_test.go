package caclient

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/culvert-mesh/culvert/pkg/certs"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
	"github.com/culvert-mesh/culvert/pkg/wire/ca"
)

// foreignCA is an IstioCertificateService that shares no code with ours. It answers
// as istiod does: one certificate an element, then all roots in one element; names
// in the request count for nothing, ImpersonatedIdentity for all.
type foreignCA struct {
	ca.UnimplementedIstioCertificateServiceServer
	t            *testing.T
	roots        []issuer // the first signs
	upper, lower issuer   // intermediates

	identity func(asked string) string // what it certifies
	ttl      time.Duration             // the most it gives
	ahead    time.Duration             // of its clock
	wait     chan struct{}             // unless nil: it answers no sooner
	calls    atomic.Int64
}

type issuer struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newForeignCA(t *testing.T) *foreignCA {
	t.Helper()
	f := &foreignCA{t: t, identity: func(asked string) string { return asked }, ttl: 24 * time.Hour}
	for _, name := range []string{"Root CA 2025", "Root CA 2026"} {
		f.roots = append(f.roots, f.issuer(name, nil))
	}
	f.upper = f.issuer("Intermediate CA 1", &f.roots[0])
	f.lower = f.issuer("Intermediate CA 2", &f.upper)
	return f
}

func (f *foreignCA) issuer(name string, by *issuer) issuer {
	f.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		f.t.Fatal(err)
	}
	i := issuer{key: key}
	tmpl := &x509.Certificate{
		Subject: pkix.Name{CommonName: name, Organization: []string{"Foreign"}}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(240 * time.Hour),
	}
	if by == nil {
		by = &issuer{tmpl, key}
	}
	i.cert, err = by.sign(tmpl, key.Public())
	if err != nil {
		f.t.Fatal(err)
	}
	return i
}

func (i issuer) sign(tmpl *x509.Certificate, pub crypto.PublicKey) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return nil, err
	}
	tmpl.SerialNumber = serial
	der, err := x509.CreateCertificate(rand.Reader, tmpl, i.cert, pub, i.key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func text(list ...*x509.Certificate) string {
	var b strings.Builder
	for _, c := range list {
		_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
	}
	return b.String()
}

func (f *foreignCA) CreateCertificate(ctx context.Context, req *ca.IstioCertificateRequest) (*ca.IstioCertificateResponse, error) {
	f.calls.Add(1)
	if f.wait != nil {
		select {
		case <-f.wait:
		case <-ctx.Done():
			return nil, status.FromContextError(ctx.Err()).Err()
		}
	}
	md, _ := metadata.FromIncomingContext(ctx)
	if got := md.Get("authorization"); len(got) != 1 || got[0] != "Bearer node" {
		return nil, status.Error(codes.Unauthenticated, "request authenticate failure")
	}
	block, _ := pem.Decode([]byte(req.GetCsr()))
	if block == nil {
		return nil, status.Error(codes.InvalidArgument, "no CSR")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil || csr.CheckSignature() != nil {
		return nil, status.Error(codes.InvalidArgument, "bad CSR")
	}
	uri, err := url.Parse(f.identity(req.GetMetadata().GetFields()["ImpersonatedIdentity"].GetStringValue()))
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, "bad identity")
	}
	now := time.Now().Add(f.ahead)
	leaf, err := f.lower.sign(&x509.Certificate{
		URIs: []*url.URL{uri}, NotBefore: now, NotAfter: now.Add(min(f.ttl, time.Duration(req.GetValidityDuration())*time.Second)),
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, csr.PublicKey)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &ca.IstioCertificateResponse{CertChain: []string{
		text(leaf), text(f.lower.cert), text(f.upper.cert), text(f.roots[0].cert, f.roots[1].cert),
	}}, nil
}

// serve serves the CA in clear on loopback; a nil transport is none.
func (f *foreignCA) serve(transport credentials.TransportCredentials) string {
	f.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.t.Fatal(err)
	}
	g := grpc.NewServer(grpc.Creds(transport))
	ca.RegisterIstioCertificateServiceServer(g, f)
	done := make(chan error, 1)
	go func() { done <- g.Serve(l) }()
	f.t.Cleanup(func() {
		g.Stop()
		if err := <-done; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			f.t.Error(err)
		}
	})
	return l.Addr().String()
}

func (f *foreignCA) client() *Client {
	f.t.Helper()
	return client(f.t, Config{Address: "http://" + f.serve(insecure.NewCredentials()), Impersonate: true,
		Token: func() (string, error) { return "node", nil }})
}

func TestForeignCA(t *testing.T) {
	t.Parallel()
	f := newForeignCA(t)
	f.ttl = time.Hour // less than the day that is asked for
	c := f.client()
	svids := certs.Fixed{}
	till := mesh.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "till"}
	for _, id := range []mesh.Identity{cart, till} {
		svid, err := c.Issue(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if len(svid.Chain) != 3 || len(svid.RootCerts) != 2 || time.Until(svid.NotAfter) > time.Hour {
			t.Errorf("%d certificates, %d roots, until %s", len(svid.Chain), len(svid.RootCerts), svid.NotAfter)
		}
		svids[id] = svid
	}
	// The two verify each other through both intermediates.
	clientTLS, err := certs.ClientTLS(t.Context(), svids, cart, []mesh.Identity{till})
	if err != nil {
		t.Fatal(err)
	}
	serverTLS, err := certs.ServerTLS(t.Context(), svids, till, certs.ServerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	a, b := net.Pipe()
	done := make(chan error, 1)
	go func() { done <- tls.Server(b, serverTLS).Handshake() }()
	if err := errors.Join(tls.Client(a, clientTLS).Handshake(), <-done); err != nil {
		t.Error(err)
	}
	a.Close()
	b.Close()
}

func TestForeignCAMisbehaves(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		change      func(*foreignCA)
		want        string
		unreachable bool
	}{
		"another identity": {func(f *foreignCA) {
			f.identity = func(string) string { return "spiffe://cluster.local/ns/shop/sa/till" }
		},
			"certificate is for spiffe://cluster.local/ns/shop/sa/till", false},
		"a name instead": {func(f *foreignCA) { f.identity = func(string) string { return "https://cart.shop" } }, "certificate is for https://cart.shop", false},
		"expired":        {func(f *foreignCA) { f.ahead = -48 * time.Hour }, "certificate expired", false},
		"slow":           {func(f *foreignCA) { f.wait = make(chan struct{}) }, "DeadlineExceeded", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newForeignCA(t)
			test.change(f)
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			if f.wait == nil {
				cancel()
				ctx, cancel = context.WithCancel(t.Context())
			}
			defer cancel()
			_, err := f.client().Issue(ctx, cart)
			if reason.Of(err) != reason.NoCertificate || !strings.Contains(err.Error(), test.want) || errors.Is(err, certs.ErrUnreachable) != test.unreachable {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

// TestForeignClock: a CA whose clock is ahead gives certificates that are not valid
// yet by ours. They are kept, and not asked for again at once.
func TestForeignClock(t *testing.T) {
	t.Parallel()
	f := newForeignCA(t)
	f.ahead = 30 * time.Second
	cache := certs.NewCache(f.client(), certs.CacheConfig{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- cache.Run(ctx) }()
	for range 10 {
		if _, err := cache.Certificate(ctx, cart); err != nil {
			t.Error(err)
		}
	}
	cancel()
	<-done
	if n := f.calls.Load(); n != 1 {
		t.Errorf("%d requests", n)
	}
}

func TestUnauthenticated(t *testing.T) {
	t.Parallel()
	f := newForeignCA(t)
	c := client(t, Config{Address: "http://" + f.serve(insecure.NewCredentials()), Token: func() (string, error) { return "stolen", nil }})
	_, err := c.Issue(t.Context(), cart)
	if err == nil || !strings.Contains(err.Error(), "Unauthenticated: request authenticate failure") || errors.Is(err, certs.ErrUnreachable) {
		t.Errorf("got %v", err)
	}
}

// TestReconnect: other roots count at the next call, and only then is there a new
// connection.
func TestReconnect(t *testing.T) {
	t.Parallel()
	f := newForeignCA(t)
	serving, err := f.lower.sign(&x509.Certificate{
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, f.upper.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	var handshakes atomic.Int64
	address := f.serve(credentials.NewTLS(&tls.Config{
		Certificates:     []tls.Certificate{{Certificate: [][]byte{serving.Raw, f.lower.cert.Raw, f.upper.cert.Raw}, PrivateKey: f.upper.key}},
		VerifyConnection: func(tls.ConnectionState) error { handshakes.Add(1); return nil },
	}))
	var trusted atomic.Pointer[x509.CertPool]
	trust := func(c *x509.Certificate) {
		pool := x509.NewCertPool()
		pool.AddCert(c)
		trusted.Store(pool)
	}
	trust(f.roots[0].cert)
	c := client(t, Config{Address: address, Impersonate: true, Token: func() (string, error) { return "node", nil },
		Roots: func() (*x509.CertPool, error) { return trusted.Load(), nil }})
	reconnect := func(want bool) {
		t.Helper()
		if changed, err := c.Reconnect(); err != nil || changed != want {
			t.Errorf("changed %v, %v", changed, err)
		}
	}
	issue := func(want string) {
		t.Helper()
		_, err := c.Issue(t.Context(), cart)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	reconnect(false)
	issue("")
	trust(f.roots[0].cert) // the same again
	reconnect(false)
	issue("")
	if n := handshakes.Load(); n != 1 {
		t.Errorf("%d connections though nothing changed", n)
	}
	trust(f.roots[1].cert)
	reconnect(true)
	issue("unknown authority")
	trust(f.roots[0].cert)
	reconnect(true)
	issue("")
}
