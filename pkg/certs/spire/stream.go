package spire

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	delegated "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/delegatedidentity/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/culvert-mesh/culvert/pkg/certs"
	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// material is what an SVID is made of.
type material struct {
	key       crypto.Signer
	chain     []*x509.Certificate
	federates []string // trust domains
	bundles   bundles  // that came with it; nil = Issuer.bundles count
}

// followPod reads the stream of a pod's identity until it breaks.
func (i *Issuer) followPod(ctx context.Context, st *stream, worked func()) error {
	err := i.readPod(ctx, st, worked)
	i.failed(st, explain(err))
	return fmt.Errorf("%s: %w", st.id, err)
}

func (i *Issuer) readPod(ctx context.Context, st *stream, worked func()) error {
	answers, err := i.agent.SubscribeToX509SVIDs(ctx, &delegated.SubscribeToX509SVIDsRequest{Selectors: selectors(st.id)})
	if err != nil {
		return err
	}
	for {
		answer, err := answers.Recv()
		if err != nil {
			return err
		}
		worked()
		m, err := pick(answer, st.id)
		if err != nil {
			i.failed(st, err)
			continue
		}
		i.got(st, m)
	}
}

// selectors are what a kubelet would tell the agent of a pod, as far as it decides
// the identity.
func selectors(id mesh.Identity) []*types.Selector {
	return []*types.Selector{
		{Type: "k8s", Value: "ns:" + id.Namespace},
		{Type: "k8s", Value: "sa:" + id.ServiceAccount},
	}
}

// explain adds what to do about an answer of the agent.
func explain(err error) error {
	if s, ok := status.FromError(err); ok {
		text := fmt.Errorf("%s: %s", s.Code(), s.Message())
		if s.Code() == codes.PermissionDenied {
			return fmt.Errorf("%w (is ztunnel registered in SPIRE, and in authorized_delegates of the agent?)", text)
		}
		return text
	}
	return err
}

// pick finds the certificate for id among those of all entries with its selectors.
func pick(answer *delegated.SubscribeToX509SVIDsResponse, id mesh.Identity) (*material, error) {
	var others []string
	for _, s := range answer.GetX509Svids() {
		got := s.GetX509Svid().GetId()
		if uri := "spiffe://" + got.GetTrustDomain() + got.GetPath(); uri != id.String() {
			others = append(others, uri)
			continue
		}
		return parse(s, answer.GetFederatesWith())
	}
	want := fmt.Sprintf("k8s:ns:%s, k8s:sa:%s", id.Namespace, id.ServiceAccount)
	if len(others) == 0 {
		return nil, fmt.Errorf("SPIRE has no entry for it on this node with no selectors but %s", want)
	}
	slices.Sort(others)
	return nil, fmt.Errorf("SPIRE's entries with selectors %s are for %s", want, strings.Join(others[:min(len(others), 3)], ", "))
}

func parse(s *delegated.X509SVIDWithKey, federates []string) (*material, error) {
	m := &material{}
	parsed, err := x509.ParsePKCS8PrivateKey(s.GetX509SvidKey())
	if err != nil {
		return nil, fmt.Errorf("private key from SPIRE: %w", err)
	}
	var ok bool
	if m.key, ok = parsed.(crypto.Signer); !ok {
		return nil, errors.New("private key from SPIRE: it cannot sign")
	}
	for n, der := range s.GetX509Svid().GetCertChain() {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("certificate %d from SPIRE: %w", n, err)
		}
		m.chain = append(m.chain, c)
	}
	for _, name := range federates {
		td, err := spiffeid.TrustDomainFromString(name)
		if err != nil {
			return nil, fmt.Errorf("federated trust domain from SPIRE: %w", err)
		}
		m.federates = append(m.federates, td.Name())
	}
	return m, nil
}

// followBundles reads the trust bundles until the stream breaks.
func (i *Issuer) followBundles(ctx context.Context, worked func()) error {
	err := i.readBundles(ctx, worked)
	i.mu.Lock()
	i.bundleErr = explain(err)
	i.mu.Unlock()
	return fmt.Errorf("trust bundles: %w", err)
}

func (i *Issuer) readBundles(ctx context.Context, worked func()) error {
	answers, err := i.agent.SubscribeToX509Bundles(ctx, &delegated.SubscribeToX509BundlesRequest{})
	if err != nil {
		return err
	}
	for {
		answer, err := answers.Recv()
		if err != nil {
			return err
		}
		worked()
		b := make(bundles)
		for name, der := range answer.GetCaCertificates() {
			td, err := spiffeid.TrustDomainFromString(name)
			if err != nil {
				return err
			}
			if b[td.Name()], err = x509.ParseCertificates(der); err != nil {
				return fmt.Errorf("bundle of %s: %w", td, err)
			}
		}
		i.gotBundles(b)
	}
}

// gotBundles makes every certificate trust what counts from now on.
func (i *Issuer) gotBundles(b bundles) {
	i.mu.Lock()
	i.bundles, i.bundleErr = b, nil
	var made []*certs.SVID
	for _, st := range i.streams {
		if s := i.makeLocked(st); s != nil {
			made = append(made, s)
		}
	}
	i.mu.Unlock()
	i.cfg.Log.Info("trust bundles received", "domains", slices.Sorted(maps.Keys(b)))
	i.deliver(made...)
}

// got takes what the agent sent for an identity.
func (i *Issuer) got(st *stream, m *material) {
	i.mu.Lock()
	st.got, st.err = m, nil
	made := i.makeLocked(st)
	i.mu.Unlock()
	if made != nil {
		i.deliver(made)
	}
}

// failed notes why there is nothing newer for an identity.
func (i *Issuer) failed(st *stream, err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	st.err = err
	st.tellLocked()
}

// makeLocked makes the certificate of what is known, nil if it is the one before
// or something is missing.
func (i *Issuer) makeLocked(st *stream) *certs.SVID {
	m := st.got
	if m == nil {
		return nil
	}
	known := m.bundles
	if known == nil {
		if known = i.bundles; known == nil {
			return nil // they are on their way
		}
	}
	roots, federated := trust(st.id, m.federates, known)
	svid, err := certs.NewSVID(st.id, m.key, m.chain, roots, federated)
	if err != nil {
		st.bad = fmt.Errorf("certificate from SPIRE, with %d roots for its trust domain: %w", len(roots), err)
		st.tellLocked()
		return nil
	}
	if same(st.svid, svid) {
		svid = nil
	} else {
		st.svid = svid
	}
	st.bad = nil
	st.tellLocked()
	return svid
}

// trust picks the roots for peers of id's own trust domain, and of those that it
// federates with.
func trust(id mesh.Identity, federates []string, known bundles) (roots []*x509.Certificate, federated bundles) {
	federated = make(bundles)
	for _, td := range federates {
		if b := known[td]; len(b) > 0 && td != id.TrustDomain {
			federated[td] = b
		}
	}
	return known[id.TrustDomain], federated
}

func same(a, b *certs.SVID) bool {
	return a != nil && a.Chain[0].Equal(b.Chain[0]) && equal(a.RootCerts, b.RootCerts) &&
		maps.EqualFunc(a.Federated, b.Federated, equal)
}

func equal(a, b []*x509.Certificate) bool { return slices.EqualFunc(a, b, (*x509.Certificate).Equal) }

// tellLocked wakes those who wait for an outcome.
func (st *stream) tellLocked() {
	close(st.changed)
	st.changed = make(chan struct{})
}

func (i *Issuer) deliver(made ...*certs.SVID) {
	if i.receive == nil {
		return
	}
	for _, s := range made {
		i.receive(s)
	}
}
