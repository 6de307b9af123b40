package spire

import (
	"crypto/x509"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	delegated "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/delegatedidentity/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/culvert-mesh/culvert/pkg/certs"
	"github.com/culvert-mesh/culvert/pkg/certs/selfsigned"
	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// fakeAgent serves the Delegated Identity API as a SPIRE agent does: the present
// state to each new stream, an empty answer for selectors without an entry, and
// every change to all streams.
type fakeAgent struct {
	delegated.UnimplementedDelegatedIdentityServer
	t      *testing.T
	socket string
	server *grpc.Server
	served chan error

	mu      sync.Mutex
	changed chan struct{} // closed and replaced at a change
	entries []entry
	bundles map[string][]byte
	denied  bool
	mute    bool // no bundles are sent
	streams int  // open now, of identities
}

type entry struct {
	selectors string // "shop/cart"
	svid      *certs.SVID
	federates []string
}

func newAgent(t *testing.T) *fakeAgent {
	t.Helper()
	dir, err := os.MkdirTemp("", "agent") // a socket's name must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	a := &fakeAgent{t: t, socket: filepath.Join(dir, "sock"), changed: make(chan struct{})}
	a.start()
	t.Cleanup(a.stop)
	return a
}

func (a *fakeAgent) start() {
	a.t.Helper()
	os.Remove(a.socket)
	l, err := net.Listen("unix", a.socket)
	if err != nil {
		a.t.Fatal(err)
	}
	a.server, a.served = grpc.NewServer(), make(chan error, 1)
	delegated.RegisterDelegatedIdentityServer(a.server, a)
	go func(s *grpc.Server, served chan error) { served <- s.Serve(l) }(a.server, a.served)
}

func (a *fakeAgent) stop() {
	if a.server == nil {
		return
	}
	a.server.Stop()
	if err := <-a.served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		a.t.Error(err)
	}
	a.server = nil
}

// set changes what the agent knows.
func (a *fakeAgent) set(change func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	change()
	close(a.changed)
	a.changed = make(chan struct{})
}

func (a *fakeAgent) open() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.streams
}

func (a *fakeAgent) SubscribeToX509SVIDs(req *delegated.SubscribeToX509SVIDsRequest, s delegated.DelegatedIdentity_SubscribeToX509SVIDsServer) error {
	wanted := ""
	for _, sel := range req.GetSelectors() {
		if sel.GetType() != "k8s" {
			return status.Error(codes.InvalidArgument, "selectors")
		}
		wanted += "/" + sel.GetValue()
	}
	a.mu.Lock()
	a.streams++
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		a.streams--
		a.mu.Unlock()
	}()
	for {
		a.mu.Lock()
		changed, denied := a.changed, a.denied
		resp := &delegated.SubscribeToX509SVIDsResponse{}
		for _, e := range a.entries {
			if wanted == e.selectors {
				resp.X509Svids = append(resp.X509Svids, e.wire(a.t))
				resp.FederatesWith = append(resp.FederatesWith, e.federates...)
			}
		}
		a.mu.Unlock()
		if denied {
			return status.Error(codes.PermissionDenied, "caller not configured as an authorized delegate")
		}
		if err := s.Send(resp); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-s.Context().Done():
			return nil
		}
	}
}

func (e entry) wire(t *testing.T) *delegated.X509SVIDWithKey {
	key, err := x509.MarshalPKCS8PrivateKey(e.svid.Leaf.PrivateKey)
	if err != nil {
		t.Error(err)
	}
	id := e.svid.ID.URL()
	return &delegated.X509SVIDWithKey{X509SvidKey: key, X509Svid: &types.X509SVID{
		Id: &types.SPIFFEID{TrustDomain: id.Host, Path: id.Path}, CertChain: e.svid.Leaf.Certificate,
	}}
}

func (a *fakeAgent) SubscribeToX509Bundles(_ *delegated.SubscribeToX509BundlesRequest, s delegated.DelegatedIdentity_SubscribeToX509BundlesServer) error {
	for {
		a.mu.Lock()
		changed, denied, mute := a.changed, a.denied, a.mute
		resp := &delegated.SubscribeToX509BundlesResponse{CaCertificates: make(map[string][]byte)}
		for td, der := range a.bundles {
			resp.CaCertificates["spiffe://"+td] = der
		}
		a.mu.Unlock()
		if denied {
			return status.Error(codes.PermissionDenied, "caller not configured as an authorized delegate")
		}
		if !mute {
			if err := s.Send(resp); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case <-s.Context().Done():
			return nil
		}
	}
}

// domain is the authority of a trust domain.
type domain struct {
	*selfsigned.Authority
	t    *testing.T
	name string
}

func newDomain(t *testing.T, name string) domain {
	t.Helper()
	a, err := selfsigned.Ephemeral()
	if err != nil {
		t.Fatal(err)
	}
	return domain{a, t, name}
}

func (d domain) id(sa string) mesh.Identity {
	return mesh.Identity{TrustDomain: d.name, Namespace: "shop", ServiceAccount: sa}
}

func (d domain) entry(sa string, life time.Duration, federates ...string) entry {
	d.t.Helper()
	svid, err := d.IssueFor(d.id(sa), life)
	if err != nil {
		d.t.Fatal(err)
	}
	return entry{"/ns:shop/sa:" + sa, svid, federates}
}

// roots are the bundle as SPIRE sends it: DER after DER.
func (d domain) roots() (der []byte) {
	d.t.Helper()
	list, err := certs.ParsePEM(d.RootsPEM())
	if err != nil {
		d.t.Fatal(err)
	}
	for _, c := range list {
		der = append(der, c.Raw...)
	}
	return der
}
