package mesh

import (
	"fmt"
	"net/url"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Identity is a workload's SPIFFE identity, spiffe://<td>/ns/<ns>/sa/<sa>.
// The zero Identity is "no identity": a peer that presented no certificate.
type Identity struct {
	TrustDomain    string
	Namespace      string
	ServiceAccount string
}

// ParseIdentity parses a SPIFFE URI. Only the four-segment Kubernetes form is an
// identity here; every other SPIFFE ID is an error.
func ParseIdentity(uri string) (Identity, error) {
	id, err := spiffeid.FromString(uri)
	if err != nil {
		return Identity{}, fmt.Errorf("parse identity %q: %w", uri, err)
	}
	seg := strings.Split(strings.TrimPrefix(id.Path(), "/"), "/")
	if len(seg) != 4 || seg[0] != "ns" || seg[2] != "sa" {
		return Identity{}, fmt.Errorf("parse identity %q: want spiffe://<trust domain>/ns/<namespace>/sa/<service account>", uri)
	}
	return Identity{id.TrustDomain().Name(), seg[1], seg[3]}, nil
}

// IsZero reports whether i is no identity at all.
func (i Identity) IsZero() bool { return i == Identity{} }

// String returns the SPIFFE URI, or "" for the zero Identity.
func (i Identity) String() string {
	if i.IsZero() {
		return ""
	}
	return "spiffe://" + i.Principal()
}

// Principal returns the identity without its scheme, the form in which
// authorization policies write and match it. It is "" for the zero Identity.
func (i Identity) Principal() string {
	if i.IsZero() {
		return ""
	}
	return i.TrustDomain + "/ns/" + i.Namespace + "/sa/" + i.ServiceAccount
}

// URL returns the identity as the URI SAN of a certificate.
func (i Identity) URL() *url.URL {
	return &url.URL{Scheme: "spiffe", Host: i.TrustDomain, Path: "/ns/" + i.Namespace + "/sa/" + i.ServiceAccount}
}
