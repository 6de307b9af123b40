// Package rbac decides by rules who may do what: Envoy's role-based access
// control, as much of it as AuthorizationPolicy needs, for requests and for
// whole connections.
//
//	policy matches = one of its permissions (what)  and one of its principals (who)
//	ALLOW: refuse unless a policy matches     DENY: refuse if one does     LOG: never refuse
//
// Shadow rules are evaluated and reported, never enforced. Values are immutable
// after New and safe for concurrent use.
package rbac

import (
	stdhttp "net/http"

	"github.com/culvert-mesh/culvert/pkg/reason"
	"github.com/culvert-mesh/culvert/waypoint/filter"
	"github.com/culvert-mesh/culvert/waypoint/http"
)

// Action is what a match means.
type Action uint8

// Actions.
const (
	Allow Action = iota
	Deny
	Log
)

// Policy is one named rule.
type Policy struct {
	Name        string
	Permissions []Rule // any
	Principals  []Rule // any
}

// Rules is an action and its policies, in order of name.
type Rules struct {
	Action   Action
	Policies []Policy
}

// Config is a filter's rules. Nil rules refuse nothing.
type Config struct {
	FilterName string
	Rules      *Rules
	Shadow     *Rules
}

// RBAC is the filter, for requests and for connections.
type RBAC struct{ cfg Config }

// New returns the filter.
func New(cfg Config) *RBAC { return &RBAC{cfg} }

// Name implements filter.Filter.
func (f *RBAC) Name() string { return f.cfg.FilterName }

// Config returns the rules, for dumps.
func (f *RBAC) Config() Config { return f.cfg }

// denied is what upstream's waypoint answers.
var denied = filter.Reply{Status: stdhttp.StatusForbidden, Body: string(reason.RBACDenied), Reason: reason.RBACDenied}

// Request implements filter.Filter.
func (f *RBAC) Request(x *filter.Exchange, req *http.Request) *filter.Reply {
	if f.allowed(x, req) {
		return nil
	}
	return &denied
}

// Response implements filter.Filter.
func (f *RBAC) Response(*filter.Exchange, *http.Response) {}

// Connection implements filter.NetworkFilter.
func (f *RBAC) Connection(x *filter.Exchange) error {
	if f.allowed(x, nil) {
		return nil
	}
	return reason.New(reason.RBACDenied, "authorize connection", x.Denied, nil)
}

// allowed evaluates both sets of rules; req is nil for a connection.
func (f *RBAC) allowed(x *filter.Exchange, req *http.Request) bool {
	if s := f.cfg.Shadow; s != nil {
		if ok, policy := s.allows(x, req); !ok {
			x.Shadow = append(x.Shadow, policy)
		}
	}
	if f.cfg.Rules == nil {
		return true
	}
	ok, policy := f.cfg.Rules.allows(x, req)
	if !ok {
		x.Denied = policy
	}
	return ok
}

// allows returns the verdict, and for a refusal the policy that made it or why
// there is none.
func (r *Rules) allows(x *filter.Exchange, req *http.Request) (bool, string) {
	matched := r.match(x, req)
	switch r.Action {
	case Deny:
		if matched != nil {
			return false, matched.Name
		}
	case Allow:
		if matched == nil {
			return false, string(reason.DeniedByDefault)
		}
	}
	return true, ""
}

func (r *Rules) match(x *filter.Exchange, req *http.Request) *Policy {
	for i := range r.Policies {
		p := &r.Policies[i]
		if anyOf(p.Permissions, x, req) && anyOf(p.Principals, x, req) {
			return p
		}
	}
	return nil
}

func anyOf(rules []Rule, x *filter.Exchange, req *http.Request) bool {
	for _, r := range rules {
		if r.Match(x, req) {
			return true
		}
	}
	return false
}
