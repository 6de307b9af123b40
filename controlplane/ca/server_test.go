package ca

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/culvert-mesh/culvert/pkg/certs"
	"github.com/culvert-mesh/culvert/pkg/certs/caclient"
	"github.com/culvert-mesh/culvert/pkg/certs/selfsigned"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/run/runtest"
	"github.com/culvert-mesh/culvert/pkg/token"
	"github.com/culvert-mesh/culvert/pkg/wire/ca"
)

func identity(ns, sa string) mesh.Identity {
	return mesh.Identity{TrustDomain: "cluster.local", Namespace: ns, ServiceAccount: sa}
}

// pods says what runs where: "node ns/sa".
type pods map[string]bool

func (p pods) Runs(node, ns, sa string) bool { return p[node+" "+ns+"/"+sa] }

// world is a CA on loopback with its token issuer.
type world struct {
	authority *selfsigned.Authority
	tokens    *token.Issuer
	audit     *runtest.Buffer
	registry  *prometheus.Registry
	addr      string
}

func newWorld(t *testing.T, change func(*Config)) *world {
	t.Helper()
	authority, err := selfsigned.Ephemeral()
	if err != nil {
		t.Fatal(err)
	}
	tokens, err := token.NewIssuer(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	w := &world{authority: authority, tokens: tokens, audit: &runtest.Buffer{}, registry: prometheus.NewRegistry()}
	cfg := Config{
		Auth:    token.NewVerifier(token.VerifierConfig{JWKS: tokens.JWKS()}),
		Signer:  authority,
		Rule:    pods{"node-1 shop/cart": true, "node-2 shop/frontend": true},
		Log:     slog.New(slog.NewTextHandler(w.audit, nil)),
		Metrics: w.registry,
	}
	if change != nil {
		change(&cfg)
	}
	w.addr = serve(t, authority, New(cfg))
	return w
}

func serve(t *testing.T, authority *selfsigned.Authority, s *Server) string {
	t.Helper()
	cert, err := authority.ServerCertificate(nil, []netip.Addr{netip.MustParseAddr("127.0.0.1")}, 0)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{*cert}, MinVersion: tls.VersionTLS13})))
	s.Register(g)
	done := make(chan error, 1)
	go func() { done <- g.Serve(l) }()
	t.Cleanup(func() {
		g.Stop()
		if err := <-done; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

// ztunnel is the token of the node proxy on a node.
func (w *world) ztunnel(t *testing.T, node string) string {
	return w.token(t, token.Claims{
		Namespace: "culvert-system", ServiceAccount: token.Ref{Name: "ztunnel"},
		Pod: token.Ref{Name: "ztunnel-x"}, Node: token.Ref{Name: node},
	})
}

func (w *world) token(t *testing.T, c token.Claims) string {
	t.Helper()
	raw, err := w.tokens.Issue(c)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// issue asks for a certificate as a client with this token would.
func (w *world) issue(t *testing.T, raw string, impersonate bool, id mesh.Identity) (*certs.SVID, error) {
	t.Helper()
	client, err := caclient.New(caclient.Config{
		Address: w.addr, Roots: func() (*x509.CertPool, error) { return w.authority.Roots(), nil },
		Token: func() (string, error) { return raw, nil }, ClusterID: "Kubernetes", Impersonate: impersonate,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	return client.Issue(t.Context(), id)
}

func TestWhoMayHaveWhichIdentity(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	shopCart := w.token(t, token.Claims{Namespace: "shop", ServiceAccount: token.Ref{Name: "cart"}, Node: token.Ref{Name: "node-1"}})
	unbound := w.token(t, token.Claims{Namespace: "culvert-system", ServiceAccount: token.Ref{Name: "ztunnel"}})
	expired := w.token(t, token.Claims{Namespace: "shop", ServiceAccount: token.Ref{Name: "cart"}, Expiry: time.Now().Add(-time.Hour)})
	const (
		unauthenticated = "Unauthenticated: request authenticate failure"
		unauthorized    = "Unauthenticated: request impersonation authentication failure"
	)
	for name, test := range map[string]struct {
		token       string
		impersonate bool
		id          mesh.Identity
		want, audit string // "" = issued
	}{
		"a pod for itself":                {shopCart, false, identity("shop", "cart"), "", "caller=shop/cart"},
		"a pod naming itself":             {shopCart, true, identity("shop", "cart"), "", "caller=shop/cart"},
		"a pod for another":               {shopCart, true, identity("shop", "frontend"), unauthorized, "no trusted node account"},
		"a node proxy for its pod":        {w.ztunnel(t, "node-1"), true, identity("shop", "cart"), "", "node=node-1"},
		"a node proxy for itself":         {w.ztunnel(t, "node-1"), true, identity("culvert-system", "ztunnel"), "", "identity=spiffe://cluster.local/ns/culvert-system/sa/ztunnel"},
		"a node proxy for another node's": {w.ztunnel(t, "node-1"), true, identity("shop", "frontend"), unauthorized, "no pod of shop/frontend on node node-1"},
		"a node proxy without node":       {unbound, true, identity("shop", "cart"), unauthorized, "names no node"},
		"a foreign trust domain":          {w.ztunnel(t, "node-1"), true, mesh.Identity{TrustDomain: "evil", Namespace: "shop", ServiceAccount: "cart"}, unauthorized, "trust domain is not cluster.local"},
		"no token":                        {"", true, identity("shop", "cart"), unauthenticated, "no bearer token"},
		"an expired token":                {expired, false, identity("shop", "cart"), unauthenticated, "token expired"},
		"a forged token":                  {shopCart + "x", false, identity("shop", "cart"), unauthenticated, "verify token"},
	} {
		t.Run(name, func(t *testing.T) {
			svid, err := w.issue(t, test.token, test.impersonate, test.id)
			switch {
			case test.want == "" && err != nil:
				t.Error(err)
			case test.want == "" && svid.ID != test.id:
				t.Errorf("certificate for %s", svid.ID)
			case test.want != "" && (err == nil || !strings.HasSuffix(err.Error(), test.want)):
				t.Errorf("got %v, want %q and no more", err, test.want)
			}
			lines := strings.Split(strings.TrimSpace(w.audit.String()), "\n")
			line := lines[len(lines)-1]
			if !strings.Contains(line, test.audit) || strings.Contains(line, "certificate signed") != (test.want == "") {
				t.Errorf("audit line %s", line)
			}
			if test.token != "" && strings.Contains(line, test.token) {
				t.Error("the audit line holds the token")
			}
		})
	}
	if n := strings.Count(w.audit.String(), "\n"); n != 11 {
		t.Errorf("%d audit lines for 11 requests", n)
	}
	for name, want := range map[string]float64{
		"citadel_server_csr_count": 11, "citadel_server_success_cert_issuance_count": 4, "citadel_server_authentication_failure_count": 7,
	} {
		if got := w.counter(t, name); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
}

func (w *world) counter(t *testing.T, name string) float64 {
	t.Helper()
	families, err := w.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

func TestTrustedAccountsAreConfigurable(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *Config) { c.TrustedNodeAccounts = []string{"mesh/proxy"} })
	if _, err := w.issue(t, w.ztunnel(t, "node-1"), true, identity("shop", "cart")); err == nil {
		t.Error("the default account is still trusted")
	}
	proxy := w.token(t, token.Claims{Namespace: "mesh", ServiceAccount: token.Ref{Name: "proxy"}, Node: token.Ref{Name: "node-1"}})
	if _, err := w.issue(t, proxy, true, identity("shop", "cart")); err != nil {
		t.Error(err)
	}
	closed := newWorld(t, func(c *Config) { c.Rule = nil })
	if _, err := closed.issue(t, closed.ztunnel(t, "node-1"), true, identity("shop", "cart")); err == nil {
		t.Error("impersonation without a node rule")
	}
}

// brokenSigner fails for its own reasons.
type brokenSigner struct{}

func (brokenSigner) SignCSR([]byte, mesh.Identity, time.Duration) ([]string, error) {
	return nil, errors.New("disk on fire at /secret/path")
}

func TestBadRequests(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	raw := w.token(t, token.Claims{Namespace: "shop", ServiceAccount: token.Ref{Name: "cart"}})
	_, good, err := certs.NewRequest(identity("shop", "cart"))
	if err != nil {
		t.Fatal(err)
	}
	verifier := token.NewVerifier(token.VerifierConfig{JWKS: w.tokens.JWKS()})
	server := New(Config{Auth: verifier, Signer: w.authority})
	broken := New(Config{Auth: verifier, Signer: brokenSigner{}})
	for name, test := range map[string]struct {
		server  *Server
		csr     string
		seconds int64
		code    codes.Code
		text    string
	}{
		"default TTL":   {server, string(good), 0, codes.OK, ""},
		"no CSR":        {server, "", 60, codes.InvalidArgument, "not a PEM certificate request"},
		"huge CSR":      {server, strings.Repeat("x", maxCSR+1), 60, codes.InvalidArgument, "bytes"},
		"negative TTL":  {server, string(good), -1, codes.InvalidArgument, "less than the minimum"},
		"TTL too long":  {server, string(good), 1 << 62, codes.InvalidArgument, "greater than the max allowed"},
		"90 days":       {server, string(good), int64(MaxTTL / time.Second), codes.OK, ""},
		"broken signer": {broken, string(good), 0, codes.Internal, "CSR signing error"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := metadata.NewIncomingContext(context.Background(), metadata.Pairs("authorization", "Bearer "+raw))
			resp, err := test.server.CreateCertificate(ctx, &ca.IstioCertificateRequest{Csr: test.csr, ValidityDuration: test.seconds})
			s := status.Convert(err)
			if s.Code() != test.code || !strings.Contains(s.Message(), test.text) || strings.Contains(s.Message(), "secret") {
				t.Fatalf("%s: %s", s.Code(), s.Message())
			}
			if err == nil {
				leaf, err := certs.ParsePEM([]byte(resp.CertChain[0]))
				if err != nil || len(leaf[0].URIs) != 1 || leaf[0].URIs[0].String() != identity("shop", "cart").String() {
					t.Errorf("%v %v", leaf, err)
				}
			}
		})
	}
}

// TestTheWholeChain: a cache over the client over the service, and TLS between two
// identities that came out of it.
func TestTheWholeChain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	client, err := caclient.New(caclient.Config{
		Address: w.addr, Roots: func() (*x509.CertPool, error) { return w.authority.Roots(), nil },
		Token: func() (string, error) { return w.ztunnel(t, "node-1"), nil }, Impersonate: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	cache := certs.NewCache(client, certs.CacheConfig{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- cache.Run(ctx) }()
	cart := identity("shop", "cart")
	for range 2 { // a second root changes nothing for those who meet
		server, err := certs.ServerTLS(ctx, cache, cart, certs.ServerOptions{})
		if err != nil {
			t.Fatal(err)
		}
		cfg, err := certs.ClientTLS(ctx, cache, cart, []mesh.Identity{cart})
		if err != nil {
			t.Fatal(err)
		}
		a, b := net.Pipe()
		result := make(chan error, 1)
		go func() { result <- tls.Server(a, server).HandshakeContext(ctx) }()
		if err := errors.Join(tls.Client(b, cfg).HandshakeContext(ctx), <-result); err != nil {
			t.Error(err)
		}
		a.Close()
		b.Close()
		if err := w.authority.RotateRoot(); err == nil {
			cache.Forget(cart)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
