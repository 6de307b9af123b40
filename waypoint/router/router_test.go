package router_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/culvert-mesh/culvert/pkg/golden"
	pkgxds "github.com/culvert-mesh/culvert/pkg/xds"
	"github.com/culvert-mesh/culvert/waypoint/config"
	"github.com/culvert-mesh/culvert/waypoint/http"
	"github.com/culvert-mesh/culvert/waypoint/match"
	"github.com/culvert-mesh/culvert/waypoint/router"
	"github.com/culvert-mesh/culvert/waypoint/xds"
)

// Each case is a route table as the control plane sends it, and requests with
// the route that each must take:
//
//	GET host/path?query name:value … -> route
func TestCases(t *testing.T) {
	t.Parallel()
	golden.Cases(t, "testdata/*.txtar", func(t *testing.T, c *golden.Case) {
		table := decode(t, c.Section(t, "routes.json"))
		for line := range strings.Lines(string(c.Section(t, "requests"))) {
			checkLine(t, table, strings.TrimSpace(line))
		}
	})
}

func decode(t *testing.T, data []byte) config.Routes {
	t.Helper()
	var rc routev3.RouteConfiguration
	if err := protojson.Unmarshal(data, &rc); err != nil {
		t.Fatal(err)
	}
	body, err := anypb.New(&rc)
	if err != nil {
		t.Fatal(err)
	}
	store := config.NewStore()
	for _, sub := range xds.NewDecoder(store).Subscriptions() {
		if sub.TypeURL == xds.RouteTypeURL {
			if rejected := sub.Handle([]pkgxds.Resource{{Name: rc.GetName(), Body: body}}, nil); len(rejected) > 0 {
				t.Fatal(rejected[0].Err)
			}
		}
	}
	return store.Load().Routes[rc.GetName()]
}

func checkLine(t *testing.T, table config.Routes, line string) {
	if line == "" || line[0] == '#' {
		return
	}
	in, want, _ := strings.Cut(line, " -> ")
	got := "none"
	if r := table.Route(parse(in)); r != nil {
		got = r.Name
	}
	if got != want {
		t.Errorf("%s: took %s, want %s", in, got, want)
	}
}

func parse(in string) *http.Request {
	words := strings.Fields(in)
	host, path, _ := strings.Cut(words[1], "/")
	req := request(words[0], host, "/"+path)
	for _, h := range words[2:] {
		name, value, _ := strings.Cut(h, ":")
		req.Header.Add(name, value)
	}
	return req
}

func request(method, host, target string) *http.Request {
	req := new(http.Request)
	req.Reset()
	req.Method = method
	req.SetAuthority([]byte(host))
	req.SetTarget([]byte(target))
	return req
}

// naive is the oracle: it looks at every route in order.
func naive(vh *config.VirtualHost, req *http.Request) *config.Route {
	path := string(req.Path())
next:
	for i := range vh.Routes {
		r := &vh.Routes[i]
		ok := false
		switch r.Path.Kind {
		case config.PathExact:
			ok = path == r.Path.Value
		case config.PathPrefix:
			ok = strings.HasPrefix(path, r.Path.Value)
		case config.PathSeparatedPrefix:
			ok = path == r.Path.Value || strings.HasPrefix(path, r.Path.Value+"/")
		case config.PathRegex:
			ok = r.Path.Regexp.MatchString(path)
		}
		if !ok {
			continue
		}
		for _, h := range r.Headers {
			if !h.Match(req) {
				continue next
			}
		}
		return r
	}
	return nil
}

func TestIndexAgreesWithScan(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(1, 2))
	segment := func() string { return string("/a/b/c/aa"[rnd.IntN(4)*2:][:2]) }
	path := func() (p string) {
		for range 1 + rnd.IntN(4) {
			p += segment()
		}
		return p
	}
	for range 200 {
		vh := config.VirtualHost{Domains: []string{"*"}}
		for i := range 30 {
			r := config.Route{Name: fmt.Sprint(i), Path: config.PathMatch{Kind: config.PathKind(rnd.IntN(4)), Value: path()}, Direct: &config.Direct{}}
			if r.Path.Kind == config.PathRegex {
				r.Path.Regexp, _ = match.CompileRegex(r.Path.Value + ".*")
			}
			if rnd.IntN(2) == 0 {
				r.Headers = []match.Header{{Name: "x", Value: match.String{Kind: match.Exact, Value: fmt.Sprint(rnd.IntN(3))}}}
			}
			vh.Routes = append(vh.Routes, r)
		}
		table, err := router.Compile(&config.RouteTable{Hosts: []config.VirtualHost{vh}})
		if err != nil {
			t.Fatal(err)
		}
		for range 200 {
			req := request("GET", "h", path()+path())
			req.Header.Add("x", fmt.Sprint(rnd.IntN(3)))
			if got, want := table.Route(req), naive(&vh, req); got != want {
				t.Fatalf("%s: %v, want %v", req.Path(), got, want)
			}
		}
	}
}

func TestDomainTwice(t *testing.T) {
	t.Parallel()
	for _, d := range []string{"a", "*", "*.a", "a.*", "a:*"} {
		_, err := router.Compile(&config.RouteTable{Hosts: []config.VirtualHost{{Domains: []string{d}}, {Domains: []string{d}}}})
		if err == nil {
			t.Errorf("%s may be in two virtual hosts", d)
		}
	}
}

func TestRewriteAndLocation(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ kind, match, by, target, want string }{
		{"prefix", "/a", "/b", "/a/x?q", "/b/x?q"},
		{"separated", "/a", "/", "/a/x", "/x"},
		{"separated", "/a", "/", "/a", "/"},
		{"exact", "/a", "/c", "/a?q", "/c?q"},
		{"prefix", "/a/", "/", "/a/x", "/x"},
	} {
		kinds := map[string]config.PathKind{"prefix": config.PathPrefix, "separated": config.PathSeparatedPrefix, "exact": config.PathExact}
		r := &config.Route{Path: config.PathMatch{Kind: kinds[c.kind], Value: c.match}, Forward: &config.Forward{PrefixRewrite: c.by, HostRewrite: "h"}}
		req := request("GET", "x", c.target)
		router.Rewrite(r, req)
		if string(req.Target()) != c.want || string(req.Authority()) != "h" {
			t.Errorf("%+v: %s", c, req.Target())
		}
	}
	for want, d := range map[string]config.Redirect{
		"https://a.b/p?q":     {Scheme: "https"},
		"http://c:8080/p?q":   {Host: "c", Port: 8080},
		"http://a.b:81/new?q": {Path: "/new"},
		"http://a.b:81/new?x": {Path: "/new?x"},
		"http://a.b/p?q":      {Port: 80},
		"http://a.b:81/p":     {StripQuery: true},
		"https://a.b/z?q":     {Scheme: "https", Port: 443, PrefixRewrite: "/z"},
		"http://a.b:8443/p?q": {Port: 8443},
	} {
		r := &config.Route{Path: config.PathMatch{Kind: config.PathExact, Value: "/p"}, Redirect: &d}
		if got := router.Location(r, request("GET", "a.b:81", "/p?q")); got != want {
			t.Errorf("%+v: %s, want %s", d, got, want)
		}
	}
}

func manyRoutes(n int) (*router.Table, *http.Request) {
	vh := config.VirtualHost{Domains: []string{"*"}}
	for i := range n {
		kind := []config.PathKind{config.PathExact, config.PathSeparatedPrefix, config.PathPrefix}[i%3]
		vh.Routes = append(vh.Routes, config.Route{Path: config.PathMatch{Kind: kind, Value: fmt.Sprintf("/api/v1/service-%d/items", i)}, Direct: &config.Direct{}})
	}
	table, err := router.Compile(&config.RouteTable{Hosts: []config.VirtualHost{vh}})
	if err != nil {
		panic(err)
	}
	return table, request("GET", "h", fmt.Sprintf("/api/v1/service-%d/items/7", n/3*3-2))
}

func TestRouteAllocatesNothing(t *testing.T) {
	table, req := manyRoutes(5000)
	if table.Route(req) == nil {
		t.Fatal("no route")
	}
	if n := testing.AllocsPerRun(100, func() { table.Route(req) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkRoute(b *testing.B) {
	for _, n := range []int{10, 5000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			table, req := manyRoutes(n)
			b.ReportAllocs()
			for b.Loop() {
				table.Route(req)
			}
		})
	}
}
