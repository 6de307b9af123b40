package xds_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/culvert-mesh/culvert/pkg/xds"
	"github.com/culvert-mesh/culvert/pkg/xds/xdstest"
)

func anyOf(typeURL, value string) (*anypb.Any, error) {
	b, err := proto.Marshal(wrapperspb.String(value))
	return &anypb.Any{TypeUrl: typeURL, Value: b}, err
}

// selfSigned returns a server's TLS settings for a name and the pool that trusts it.
func selfSigned(t *testing.T, name string) (*tls.Config, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if ip := net.ParseIP(name); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{name}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS13}, pool
}

func TestTLS(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		what, certName, alt string
		ok                  bool
	}{
		{"host matches", "127.0.0.1", "", true},
		{"alternative name matches", "istiod.istio-system.svc", "istiod.istio-system.svc", true},
		{"neither matches", "evil", "istiod.istio-system.svc", false},
	} {
		t.Run(test.what, func(t *testing.T) {
			t.Parallel()
			server, roots := selfSigned(t, test.certName)
			s := xdstest.New(t, server)
			h := newHeld()
			failed := &errorLog{seen: make(chan struct{})}
			c, ctx := start(t, xds.Config{
				Address: strings.TrimPrefix(s.URL(), "https://"), AltHostname: test.alt,
				Roots: func() (*x509.CertPool, error) { return roots, nil },
				Types: []xds.Subscription{h.wildcard(typeA)}, Metrics: failed,
			})
			if test.ok {
				snapshot(t, ctx, c)
				return
			}
			select {
			case <-failed.seen:
			case <-c.FirstSnapshot():
				t.Error("connected to a server with the wrong name")
			case <-ctx.Done():
				t.Fatal("neither connected nor failed")
			}
		})
	}
}

// errorLog signals the first failed connection.
type errorLog struct {
	once sync.Once
	seen chan struct{}
}

func (e *errorLog) ConnectionTerminated(string) { e.once.Do(func() { close(e.seen) }) }
func (e *errorLog) Message(string, int)         {}

// TestCredentialsAreReadAgain: roots and token of every connection are current.
func TestCredentialsAreReadAgain(t *testing.T) {
	t.Parallel()
	server, roots := selfSigned(t, "127.0.0.1")
	s := xdstest.New(t, server)
	var mu sync.Mutex
	pool, token := x509.NewCertPool(), "first"
	h := newHeld()
	failed := &errorLog{seen: make(chan struct{})}
	c, ctx := start(t, xds.Config{
		Address: s.URL(), Types: []xds.Subscription{h.wildcard(typeA)}, ClusterID: "Kubernetes", Metrics: failed,
		Roots: func() (*x509.CertPool, error) { mu.Lock(); defer mu.Unlock(); return pool, nil },
		Token: func() (string, error) { mu.Lock(); defer mu.Unlock(); return token, nil },
	})
	select {
	case <-failed.seen:
	case <-ctx.Done():
		t.Fatal("an unknown root was accepted")
	}
	mu.Lock()
	pool = roots
	mu.Unlock()
	snapshot(t, ctx, c)
	mu.Lock()
	token = "second"
	mu.Unlock()
	from := len(s.Requests())
	s.EndStreams(nil)
	s.Await(ctx, from, isFirst)
	headers := s.Headers()
	for i, want := range []string{"Bearer first", "Bearer second"} {
		if got := headers[i].Get("authorization"); len(got) != 1 || got[0] != want || headers[i].Get("clusterid")[0] != "Kubernetes" {
			t.Errorf("stream %d: authorization %q, want %q; headers %v", i, got, want, headers[i])
		}
	}
}
