package caclient

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/culvert-mesh/culvert/pkg/certs/selfsigned"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
	"github.com/culvert-mesh/culvert/pkg/wire/ca"
)

var cart = mesh.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "cart"}

// server is a CA on loopback that records what it was asked.
type server struct {
	ca.UnimplementedIstioCertificateServiceServer
	*selfsigned.Authority
	addr   string
	answer func(chain []string) ([]string, error)

	mu   sync.Mutex
	reqs []*ca.IstioCertificateRequest
	mds  []metadata.MD
}

func (s *server) CreateCertificate(ctx context.Context, req *ca.IstioCertificateRequest) (*ca.IstioCertificateResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	s.mu.Lock()
	s.reqs, s.mds = append(s.reqs, req), append(s.mds, md)
	s.mu.Unlock()
	chain, err := s.SignCSR([]byte(req.Csr), cart, time.Duration(req.ValidityDuration)*time.Second)
	if err == nil && s.answer != nil {
		chain, err = s.answer(chain)
	}
	return &ca.IstioCertificateResponse{CertChain: chain}, err
}

func start(t *testing.T, plain bool, answer func([]string) ([]string, error)) *server {
	t.Helper()
	a, err := selfsigned.Ephemeral()
	if err != nil {
		t.Fatal(err)
	}
	transport := insecure.NewCredentials()
	if !plain {
		cert, err := a.ServerCertificate(nil, []netip.Addr{netip.MustParseAddr("127.0.0.1")}, 0)
		if err != nil {
			t.Fatal(err)
		}
		transport = credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{*cert}, MinVersion: tls.VersionTLS13})
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{Authority: a, addr: l.Addr().String(), answer: answer}
	g := grpc.NewServer(grpc.Creds(transport))
	ca.RegisterIstioCertificateServiceServer(g, s)
	done := make(chan error, 1)
	go func() { done <- g.Serve(l) }()
	t.Cleanup(func() {
		g.Stop()
		if err := <-done; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			t.Error(err)
		}
	})
	return s
}

func client(t *testing.T, cfg Config) *Client {
	t.Helper()
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for range 2 {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	return c
}

func (s *server) config() Config {
	return Config{Address: "https://" + s.addr, Roots: func() (*x509.CertPool, error) { return s.Roots(), nil }}
}

func TestIssue(t *testing.T) {
	t.Parallel()
	s := start(t, false, nil)
	cfg := s.config()
	tokens := []string{"one", "two"}
	cfg.Token = func() (string, error) {
		next := tokens[0]
		tokens = tokens[1:]
		return next, nil
	}
	cfg.ClusterID, cfg.Headers, cfg.TTL, cfg.Impersonate = "c1", map[string]string{"X-Extra": "y"}, 2*time.Hour, true
	c := client(t, cfg)
	for range 2 {
		svid, err := c.Issue(t.Context(), cart)
		if err != nil {
			t.Fatal(err)
		}
		if svid.ID != cart || len(svid.Chain) != 2 || time.Until(svid.NotAfter) > 2*time.Hour {
			t.Errorf("%+v", svid)
		}
	}
	for i, want := range []string{"Bearer one", "Bearer two"} {
		md := s.mds[i]
		if got := md.Get("authorization"); len(got) != 1 || got[0] != want {
			t.Errorf("authorization %q", got)
		}
		if md.Get("clusterid")[0] != "c1" || md.Get("x-extra")[0] != "y" {
			t.Errorf("metadata %v", md)
		}
	}
	req := s.reqs[0]
	if got := req.Metadata.Fields[ca.ImpersonatedIdentity].GetStringValue(); got != cart.String() || req.ValidityDuration != 7200 {
		t.Errorf("request %v", req)
	}
}

func TestWithoutTokenNothingIsTold(t *testing.T) {
	t.Parallel()
	s := start(t, true, nil)
	c := client(t, Config{Address: "http://" + s.addr, ClusterID: "c1", Token: func() (string, error) { return "", nil }})
	if _, err := c.Issue(t.Context(), cart); err != nil {
		t.Fatal(err)
	}
	if md := s.mds[0]; len(md.Get("authorization")) != 0 || len(md.Get("clusterid")) != 0 || s.reqs[0].Metadata != nil {
		t.Errorf("metadata %v, request %v", md, s.reqs[0])
	}
}

func TestErrorsSayWhy(t *testing.T) {
	t.Parallel()
	other, err := selfsigned.Ephemeral()
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		answer func([]string) ([]string, error)
		change func(*Config)
		id     mesh.Identity
		want   string
	}{
		"refused": {func([]string) ([]string, error) {
			return nil, status.Error(codes.Unauthenticated, "request authenticate failure")
		}, nil, cart, "Unauthenticated: request authenticate failure"},
		"short chain":    {func(c []string) ([]string, error) { return c[:1], nil }, nil, cart, "at least a leaf and a root"},
		"wrong identity": {nil, nil, mesh.Identity{TrustDomain: "cluster.local", Namespace: "a", ServiceAccount: "b"}, "certificate is for " + cart.String()},
		"token": {nil, func(c *Config) { c.Token = func() (string, error) { return "", errors.New("no token file") } },
			cart, "no token file"},
		"foreign server": {nil, func(c *Config) { c.Roots = func() (*x509.CertPool, error) { return other.Roots(), nil } },
			cart, "unknown authority"},
		"nobody there": {nil, func(c *Config) { c.Address = "127.0.0.1:1" }, cart, "refused"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := start(t, false, test.answer).config()
			if test.change != nil {
				test.change(&cfg)
			}
			_, err := client(t, cfg).Issue(t.Context(), test.id)
			if reason.Of(err) != reason.NoCertificate || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), test.id.String()) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func TestAddresses(t *testing.T) {
	t.Parallel()
	roots := func() (*x509.CertPool, error) { return x509.NewCertPool(), nil }
	for _, bad := range []string{"", "host", "https://host", ":15012", "https://"} {
		if _, err := New(Config{Address: bad, Roots: roots}); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
	if _, err := New(Config{Address: "host:1"}); err == nil {
		t.Error("TLS without roots was accepted")
	}
}
