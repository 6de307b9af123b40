package config

import (
	"regexp"
	"time"

	"github.com/culvert-mesh/culvert/waypoint/http"
	"github.com/culvert-mesh/culvert/waypoint/match"
)

// RouteTable is a set of virtual hosts (Envoy's RouteConfiguration), in order.
type RouteTable struct {
	Name       string
	Hosts      []VirtualHost
	IgnorePort bool // of the authority, when matching domains
}

// VirtualHost is the routes of some domains.
type VirtualHost struct {
	Name    string
	Domains []string // "a.example", "*.example", "a.*", "*"; lower case
	Routes  []Route  // the first that matches is taken
}

// PathKind is how a route compares the path.
type PathKind uint8

// Ways to compare a path. A separated prefix matches whole segments only.
const (
	PathPrefix PathKind = iota
	PathExact
	PathSeparatedPrefix
	PathRegex
)

// PathMatch compares the path without the query.
type PathMatch struct {
	Kind       PathKind
	Value      string
	Regexp     *regexp.Regexp // for PathRegex, anchored
	IgnoreCase bool
}

// Route says which requests it takes and what becomes of them. Exactly one of
// Forward, Redirect and Direct is set.
type Route struct {
	Name    string
	Path    PathMatch
	Headers []match.Header
	Query   []match.Query

	Forward  *Forward
	Redirect *Redirect
	Direct   *Direct

	// RequestMods and ResponseMods are all changes of the route, its virtual host
	// and its table, in the order in which they apply.
	RequestMods  []HeaderMods
	ResponseMods []HeaderMods
}

// Forward sends the request to a cluster.
type Forward struct {
	Clusters    []WeightedCluster // at least one
	TotalWeight uint32            // sum of the weights; may be 0 when all are
	Timeout     time.Duration     // for the whole response; 0 = none
	NoCluster   int               // status when the cluster does not exist

	PrefixRewrite string         // replaces what the path match compared; "" = none
	RegexRewrite  *regexp.Regexp // replaced by Substitution
	Substitution  string         // in regexp's $1 notation
	HostRewrite   string         // "" = none

	Retry   *Retry // nil = none
	Mirrors []Mirror
}

// Retry sends a request again when its connection failed, or its answer has one of
// some codes.
type Retry struct {
	Attempts   int           // after the first
	Codes      []int         // that are tried again
	TryTimeout time.Duration // for one try; 0 = none
	Backoff    time.Duration // before the second try; doubles
}

// Mirror sends copies of requests to another cluster.
type Mirror struct {
	Cluster    string
	Millionths uint32 // of the requests
}

// WeightedCluster is one of the backends that share a route's requests.
type WeightedCluster struct {
	Name         string
	Weight       uint32
	RequestMods  *HeaderMods // nil = none; applied first
	ResponseMods *HeaderMods
}

// Pick returns the cluster for a random number; nil when all weights are 0.
func (f *Forward) Pick(random uint32) *WeightedCluster {
	if len(f.Clusters) == 1 && f.TotalWeight > 0 {
		return &f.Clusters[0]
	}
	if f.TotalWeight == 0 {
		return nil
	}
	n := uint32(uint64(random) * uint64(f.TotalWeight) >> 32)
	for i := range f.Clusters {
		if w := f.Clusters[i].Weight; n < w {
			return &f.Clusters[i]
		} else {
			n -= w
		}
	}
	return nil
}

// Redirect answers with another location. Empty fields keep the request's.
type Redirect struct {
	Status        int
	Scheme        string
	Host          string
	Port          uint32
	Path          string // replaces the path; and the query, if it has one itself
	PrefixRewrite string
	StripQuery    bool
}

// Direct answers without a backend.
type Direct struct {
	Status int
	Body   []byte
}

// ModKind is what a header change does to a field that is there already.
type ModKind uint8

// Kinds of header changes.
const (
	ModAppend    ModKind = iota // adds another value
	ModOverwrite                // replaces, or adds
	ModIfAbsent                 // adds unless present
	ModIfPresent                // replaces, never adds
)

// HeaderMod is one change. Name is lower case.
type HeaderMod struct {
	Kind  ModKind
	Name  string
	Value string
}

// HeaderMods removes fields, then adds and sets others.
type HeaderMods struct {
	Set    []HeaderMod
	Remove []string
}

// Empty reports whether m changes nothing.
func (m *HeaderMods) Empty() bool { return len(m.Set) == 0 && len(m.Remove) == 0 }

// Apply changes h.
func (m *HeaderMods) Apply(h *http.Header) {
	for _, name := range m.Remove {
		h.Remove(name)
	}
	for _, s := range m.Set {
		switch {
		case s.Kind == ModAppend:
			h.Append(s.Name, s.Value)
		case s.Kind == ModOverwrite, (s.Kind == ModIfPresent) == h.Has(s.Name):
			h.Set(s.Name, s.Value)
		}
	}
}

// ApplyRequest changes a request's header; ":authority" and "host" mean its authority.
func (m *HeaderMods) ApplyRequest(r *http.Request) {
	m.Apply(&r.Header)
	for _, s := range m.Set {
		if s.Name == ":authority" || s.Name == "host" {
			r.SetAuthority([]byte(s.Value))
			r.Header.Remove(s.Name)
		}
	}
}
