package rbac

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
	"github.com/culvert-mesh/culvert/waypoint/filter"
	"github.com/culvert-mesh/culvert/waypoint/http"
	"github.com/culvert-mesh/culvert/waypoint/match"
)

func exact(s string) match.String { return match.String{Kind: match.Exact, Value: s} }

func header(name, value string) Rule { return Header{match.Header{Name: name, Value: exact(value)}} }

func get(path string) *http.Request {
	r := new(http.Request)
	r.Reset()
	r.Method = "GET"
	r.SetAuthority([]byte("cart"))
	r.SetTarget([]byte(path))
	return r
}

var caller = filter.Exchange{
	Source:      netip.MustParseAddrPort("10.1.2.3:4000"),
	Identity:    mesh.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "web"},
	Destination: netip.MustParseAddrPort("10.96.0.1:80"),
}

func TestRules(t *testing.T) {
	t.Parallel()
	regex, err := match.CompileRegex("spiffe://[^/]+/ns/shop/sa/[^/]+")
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range []struct {
		rule             Rule
		http, connection bool
	}{
		{Any{}, true, true},
		{header(":method", "GET"), true, false},
		{header(":method", "POST"), false, false},
		{Not{header(":method", "POST")}, true, true},
		{header(":authority", "cart"), true, false},
		{Path{exact("/a/b")}, true, false},
		{Path{match.String{Kind: match.Prefix, Value: "/a"}}, true, false},
		{Path{match.String{Kind: match.Suffix, Value: "q"}}, false, false},
		{SourceIP{netip.MustParsePrefix("10.1.0.0/16")}, true, true},
		{SourceIP{netip.MustParsePrefix("10.2.0.0/16")}, false, false},
		{DestinationIP{netip.MustParsePrefix("10.96.0.1/32")}, true, true},
		{DestinationPort{80, 80}, true, true},
		{DestinationPort{81, 90}, false, false},
		{Authenticated{}, true, true},
		{Authenticated{exact("spiffe://cluster.local/ns/shop/sa/web")}, true, true},
		{Authenticated{exact("spiffe://cluster.local/ns/shop/sa/webb")}, false, false},
		{Authenticated{match.String{Kind: match.Regex, Regexp: regex}}, true, true},
		{And{Any{}, Authenticated{}}, true, true},
		{And{Any{}, header("x", "y")}, false, false},
		{And{}, true, true},
		{Or{}, false, false},
		{Or{header("x", "y"), DestinationPort{80, 80}}, true, true},
	} {
		x := caller
		if got := c.rule.Match(&x, get("/a/b?q")); got != c.http {
			t.Errorf("%d %#v: request %v", i, c.rule, got)
		}
		if got := c.rule.Match(&x, nil); got != c.connection {
			t.Errorf("%d %#v: connection %v", i, c.rule, got)
		}
	}
	anonymous := caller
	anonymous.Identity = mesh.Identity{}
	if (Authenticated{}).Match(&anonymous, nil) {
		t.Error("a client without a certificate is authenticated")
	}
}

func TestTemplates(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		template, path string
		want           bool
	}{
		{"/a/{*}", "/a/b", true}, {"/a/{*}", "/a/", false}, {"/a/{*}", "/a/b/c", false}, {"/a/{*}", "/a", false},
		{"/a/{*}/c", "/a/b/c", true}, {"/a/{*}/c", "/a/b/d", false},
		{"/a/{**}", "/a/b/c", true}, {"/a/{**}", "/a/", true}, {"/a/{**}/z", "/a/b/c/z", true}, {"/a/{**}/z", "/a/b/c", false},
		{"/{*}/{**}", "/x/y/z", true}, {"/a", "/a", true}, {"/a", "/a/", false},
	} {
		p, ok := NewPathTemplate(c.template)
		if !ok {
			t.Fatal(c.template)
		}
		if got := p.Match(nil, get(c.path)); got != c.want {
			t.Errorf("%s %s: %v", c.template, c.path, got)
		}
	}
	for _, bad := range []string{"a", "/{**}/{**}", "/a{*}", "/*", "/{x}"} {
		if _, ok := NewPathTemplate(bad); ok {
			t.Errorf("%s is accepted", bad)
		}
	}
}

func TestActions(t *testing.T) {
	t.Parallel()
	matching := []Policy{{Name: "p", Permissions: []Rule{Any{}}, Principals: []Rule{Any{}}}}
	other := []Policy{{Name: "p", Permissions: []Rule{Any{}}, Principals: []Rule{Or{}}}}
	for i, c := range []struct {
		rules *Rules
		ok    bool
		why   string
	}{
		{nil, true, ""},
		{&Rules{Action: Allow}, false, string(reason.DeniedByDefault)},
		{&Rules{Action: Allow, Policies: matching}, true, ""},
		{&Rules{Action: Allow, Policies: other}, false, string(reason.DeniedByDefault)},
		{&Rules{Action: Deny}, true, ""},
		{&Rules{Action: Deny, Policies: matching}, false, "p"},
		{&Rules{Action: Deny, Policies: other}, true, ""},
		{&Rules{Action: Log, Policies: matching}, true, ""},
	} {
		x := caller
		f := New(Config{FilterName: "rbac", Rules: c.rules})
		reply := f.Request(&x, get("/"))
		if (reply == nil) != c.ok || x.Denied != c.why {
			t.Errorf("%d: %v, %q", i, reply, x.Denied)
		}
		if reply != nil && (reply.Status != 403 || reply.Body != "RBAC: access denied") {
			t.Errorf("%d: %+v", i, reply)
		}
		if err := f.Connection(&x); (err == nil) != c.ok || err != nil && reason.Of(err) != reason.RBACDenied {
			t.Errorf("%d: connection %v", i, err)
		}
		shadow := New(Config{Shadow: c.rules})
		x = caller
		if shadow.Request(&x, get("/")) != nil || (len(x.Shadow) == 0) != c.ok {
			t.Errorf("%d: shadow rules %v", i, x.Shadow)
		}
	}
}

func TestNoAllocations(t *testing.T) {
	var policies []Policy
	for i := range 50 {
		policies = append(policies, Policy{Name: fmt.Sprint(i), Permissions: []Rule{And{header(":method", "GET"), Path{exact(fmt.Sprint("/", i))}}},
			Principals: []Rule{Authenticated{exact("spiffe://cluster.local/ns/shop/sa/web")}}})
	}
	f := New(Config{Rules: &Rules{Policies: policies}})
	req, x := get("/49"), caller
	if n := testing.AllocsPerRun(100, func() {
		if f.Request(&x, req) != nil {
			t.Fatal("denied")
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
