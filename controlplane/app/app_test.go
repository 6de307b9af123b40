package app

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	reports "github.com/culvert-mesh/culvert/controlplane/status"
	"github.com/culvert-mesh/culvert/controlplane/xds/waypoint"
	"github.com/culvert-mesh/culvert/pkg/token"
	authzpb "github.com/culvert-mesh/culvert/pkg/wire/authz"
	waypointpb "github.com/culvert-mesh/culvert/pkg/wire/waypoint"
	workloadpb "github.com/culvert-mesh/culvert/pkg/wire/workload"
)

const patience = 2 * time.Minute

// plane is a control plane on loopback, over a folder.
type plane struct {
	t      testing.TB
	dir    string
	app    *App
	issuer *token.Issuer
	addr   string
	roots  *x509.CertPool
	stop   func()
}

// newPlane starts a control plane over dir, which it makes where it is missing.
func newPlane(t testing.TB, dir string, edits ...func(*Config)) *plane {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, "yaml"), 0o755); err != nil {
		t.Fatal(err)
	}
	issuer, err := token.NewIssuer(filepath.Join(dir, "tokens"))
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := ParseConfig([]string{
		"--folder", dir + "/yaml", "--objects", dir + "/objects", "--patches", dir + "/patches",
		"--state", dir + "/state", "--token-keys", issuer.JWKS(),
		"--xds-listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--ready-listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0",
	}, nil, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	for _, edit := range edits {
		edit(&cfg)
	}
	a, err := New(cfg, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	p := &plane{t: t, dir: dir, app: a, issuer: issuer}
	stopped := false
	p.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
	t.Cleanup(p.stop)
	wait, cancelWait := context.WithTimeout(ctx, patience)
	defer cancelWait()
	addr, err := a.Addr(wait)
	if err != nil {
		t.Fatal(err)
	}
	p.addr = addr.String()
	pem, err := os.ReadFile(filepath.Join(dir, "state", "root-cert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	p.roots = x509.NewCertPool()
	p.roots.AppendCertsFromPEM(pem)
	return p
}

// write puts a file into the folder as careful programs do.
func (p *plane) write(name, content string) {
	p.t.Helper()
	path := filepath.Join(p.dir, "yaml", name)
	if err := os.WriteFile(path+".tmp", []byte(content), 0o644); err != nil {
		p.t.Fatal(err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		p.t.Fatal(err)
	}
}

func (p *plane) remove(name string) {
	p.t.Helper()
	if err := os.Remove(filepath.Join(p.dir, "yaml", name)); err != nil {
		p.t.Fatal(err)
	}
}

// eventually waits until the status report holds cond.
func (p *plane) eventually(what string, cond func(reports.Report) bool) reports.Report {
	p.t.Helper()
	for deadline := time.Now().Add(patience); ; {
		r := p.app.Status()
		if cond(r) {
			return r
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("never: %s; report %+v", what, r)
		}
		<-time.After(time.Millisecond)
	}
}

// client is a proxy's end of a stream.
type client struct {
	t      testing.TB
	stream grpc.BidiStreamingClient[discovery.DeltaDiscoveryRequest, discovery.DeltaDiscoveryResponse]
	node   *corev3.Node
	close  func()
}

type proxy struct{ kind, namespace, account, gateway string }

var node1 = proxy{kind: "ztunnel", namespace: "culvert-system", account: "ztunnel"}

// connect opens a stream with a token for who.
func (p *plane) connect(who proxy) *client {
	p.t.Helper()
	tok, err := p.issuer.Issue(token.Claims{Namespace: who.namespace, ServiceAccount: token.Ref{Name: who.account}})
	if err != nil {
		p.t.Fatal(err)
	}
	return p.connectWith(tok, who)
}

func (p *plane) connectWith(tok string, who proxy) *client {
	p.t.Helper()
	conn, err := grpc.NewClient(p.addr, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: p.roots, MinVersion: tls.VersionTLS13})),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(200<<20)))
	if err != nil {
		p.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+tok)
	s, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		p.t.Fatal(err)
	}
	meta, err := structpb.NewStruct(map[string]any{"NAMESPACE": who.namespace, "NODE_NAME": "node-1", "GATEWAY_NAME": who.gateway})
	if err != nil {
		p.t.Fatal(err)
	}
	c := &client{t: p.t, stream: s, node: &corev3.Node{Id: who.kind + "~10.0.0.1~p." + who.namespace + "~" + who.namespace + ".svc.cluster.local", Metadata: meta}}
	c.close = func() { cancel(); conn.Close() }
	p.t.Cleanup(c.close)
	return c
}

func (c *client) subscribe(url string, held map[string]string, names ...string) {
	c.t.Helper()
	c.send(&discovery.DeltaDiscoveryRequest{Node: c.node, TypeUrl: url, InitialResourceVersions: held, ResourceNamesSubscribe: names})
}

func (c *client) send(r *discovery.DeltaDiscoveryRequest) {
	c.t.Helper()
	if err := c.stream.Send(r); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) recv() *discovery.DeltaDiscoveryResponse {
	c.t.Helper()
	r, err := c.stream.Recv()
	if err != nil {
		c.t.Fatal(err)
	}
	return r
}

// next receives a response, acknowledges it and checks its type and names.
func (c *client) next(url string, set, removed []string) *discovery.DeltaDiscoveryResponse {
	c.t.Helper()
	r := c.recv()
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce})
	if got := names(r); r.TypeUrl != url || !slices.Equal(got, set) || !slices.Equal(r.RemovedResources, removed) {
		c.t.Fatalf("response %s set %v removed %v, want %s set %v removed %v", r.TypeUrl, got, r.RemovedResources, url, set, removed)
	}
	return r
}

func names(r *discovery.DeltaDiscoveryResponse) []string {
	var out []string
	for _, res := range r.Resources {
		out = append(out, res.Name)
	}
	slices.Sort(out)
	return out
}

func versions(rs ...*discovery.DeltaDiscoveryResponse) map[string]string {
	out := map[string]string{}
	for _, r := range rs {
		for _, res := range r.Resources {
			out[res.Name] = res.Version
		}
	}
	return out
}

const static = "istio-system/istio_converted_static_strict"

func podYAML(name, ip string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s, namespace: shop}\nspec: {nodeName: node-1}\nstatus: {phase: Running, podIP: %s}\n", name, ip)
}

func TestStream(t *testing.T) {
	t.Parallel()
	p := newPlane(t, t.TempDir())
	c := p.connect(node1)
	c.subscribe(workloadpb.TypeURL, nil)
	c.subscribe(authzpb.TypeURL, nil)
	first := []*discovery.DeltaDiscoveryResponse{c.recv(), c.recv()}
	for _, r := range first { // both types are answered, also the empty one
		c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce})
		if want := map[string]int{workloadpb.TypeURL: 0, authzpb.TypeURL: 1}[r.TypeUrl]; len(r.Resources) != want {
			t.Fatalf("first %s: %v", r.TypeUrl, names(r))
		}
	}
	p.eventually("in sync", func(r reports.Report) bool {
		return len(r.Proxies) == 1 && r.Proxies[0].Types[workloadpb.TypeURL].Synced && r.Proxies[0].Types[authzpb.TypeURL].Synced
	})

	const a, b = "Kubernetes//Pod/shop/a", "Kubernetes//Pod/shop/b"
	p.write("a.yaml", podYAML("a", "10.0.0.1"))
	v1 := c.next(workloadpb.TypeURL, []string{a}, nil)
	if got := v1.Resources[0].Aliases; !slices.Equal(got, []string{"/10.0.0.1"}) {
		t.Errorf("aliases %q", got)
	}
	p.write("b.yaml", podYAML("b", "10.0.0.2"))
	c.next(workloadpb.TypeURL, []string{b}, nil)

	// A file that turns bad pushes nothing; the next change comes alone.
	p.write("a.yaml", strings.Replace(podYAML("a", "10.0.0.1"), "nodeName", "nodName", 1))
	r := p.eventually("problem", func(r reports.Report) bool { return len(r.Problems) == 1 })
	if got := r.Problems[0]; got.File != p.dir+"/yaml/a.yaml" || got.Line != 4 || got.Field != "spec.nodName" {
		t.Errorf("problem %+v", got)
	}
	p.write("b.yaml", podYAML("b", "10.0.0.3"))
	c.next(workloadpb.TypeURL, []string{b}, nil)

	// What is referred to comes first, and goes last.
	p.write("a.yaml", podYAML("a", "10.0.0.1")+`---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny, namespace: shop}
spec: {selector: {matchLabels: {app: a}}}
---
`+strings.Replace(podYAML("c", "10.0.0.4"), "namespace: shop", "namespace: shop, labels: {app: a}", 1))
	c.next(authzpb.TypeURL, []string{"shop/deny"}, nil)
	c.next(workloadpb.TypeURL, []string{"Kubernetes//Pod/shop/c"}, nil)
	p.eventually("no problem after the repair", func(r reports.Report) bool { return len(r.Problems) == 0 })
	p.remove("a.yaml")
	c.next(workloadpb.TypeURL, nil, []string{a, "Kubernetes//Pod/shop/c"})
	c.next(authzpb.TypeURL, nil, []string{"shop/deny"})
}

func TestResume(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := newPlane(t, dir)
	p.write("a.yaml", podYAML("a", "10.0.0.1"))
	p.write("b.yaml", podYAML("b", "10.0.0.2"))
	p.eventually("both pods", func(r reports.Report) bool { return r.Resources[workloadpb.TypeURL] == 2 })
	c := p.connect(node1)
	const a, b, gone = "Kubernetes//Pod/shop/a", "Kubernetes//Pod/shop/b", "Kubernetes//Pod/shop/gone"
	c.subscribe(authzpb.TypeURL, nil)
	policies := c.next(authzpb.TypeURL, []string{static}, nil)
	c.subscribe(workloadpb.TypeURL, nil)
	held := versions(c.next(workloadpb.TypeURL, []string{a, b}, nil))
	p.stop()

	// The next process, over the same state: same root, same versions.
	root, err := os.ReadFile(dir + "/state/root-cert.pem")
	if err != nil {
		t.Fatal(err)
	}
	p.write("b.yaml", podYAML("b", "10.0.0.3"))
	p = newPlane(t, dir)
	if again, err := os.ReadFile(dir + "/state/root-cert.pem"); err != nil || !bytes.Equal(root, again) {
		t.Errorf("the root changed: %v", err)
	}
	held[gone] = "1"
	c = p.connect(node1)
	c.subscribe(authzpb.TypeURL, versions(policies))
	c.next(authzpb.TypeURL, nil, nil)
	c.subscribe(workloadpb.TypeURL, held)
	c.next(workloadpb.TypeURL, []string{b}, []string{gone})
}

// TestLastGoodOutlives: what a mistake would have left in force is in force after
// a restart as well, whether the mistake is in the YAML, a field or a value.
func TestLastGoodOutlives(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := newPlane(t, dir)
	service := "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: shop}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}\n"
	p.write("a.yaml", podYAML("a", "10.0.0.1"))
	p.write("b.yaml", podYAML("b", "10.0.0.2"))
	p.write("c.yaml", service)
	p.write("d.yaml", podYAML("d", "10.0.0.4"))
	all := func(r reports.Report) bool { return r.Resources[workloadpb.TypeURL] == 4 }
	p.eventually("all of it", all)
	p.eventually("copies", func(reports.Report) bool {
		list, _ := os.ReadDir(dir + "/state/last-good")
		return len(list) == 4
	})
	p.stop()
	p.write("a.yaml", "kind: [\n")
	p.write("b.yaml", strings.Replace(podYAML("b", "10.0.0.2"), "nodeName", "nodName", 1))
	p.write("c.yaml", strings.Replace(service, "port: 80", "port: 70000", 1))
	p.write("d.yaml", podYAML("e", "10.0.0.5"))
	for range 2 { // and the restart after that
		p = newPlane(t, dir)
		r := p.eventually("all of it again", func(r reports.Report) bool { return all(r) && !r.Updated.IsZero() })
		if len(r.Problems) != 2 || len(r.Conditions) != 1 {
			t.Errorf("problems %v, conditions %v", r.Problems, r.Conditions)
		}
		c := p.connect(node1)
		c.subscribe(workloadpb.TypeURL, nil)
		c.next(workloadpb.TypeURL, []string{"Kubernetes//Pod/shop/a", "Kubernetes//Pod/shop/b", "Kubernetes//Pod/shop/e", "shop/s.shop.svc.cluster.local"}, nil)
		p.stop()
	}
}

func TestNack(t *testing.T) {
	t.Parallel()
	p := newPlane(t, t.TempDir())
	c := p.connect(node1)
	c.subscribe(authzpb.TypeURL, nil)
	r := c.recv()
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce, ErrorDetail: &statuspb.Status{Message: static + ": no"}})
	got := p.eventually("the refusal shows", func(r reports.Report) bool {
		return len(r.Proxies) == 1 && r.Proxies[0].Types[authzpb.TypeURL].Nacks == 1
	}).Proxies[0]
	if st := got.Types[authzpb.TypeURL]; st.Synced || st.LastNack != static+": no" || got.Node != "node-1" || got.Kind != "ztunnel" {
		t.Errorf("proxy %+v", got)
	}
	rec := httptest.NewRecorder()
	p.app.Handler().ServeHTTP(rec, httptest.NewRequest("GET", "/debug/status", nil))
	var report map[string]any
	if err := json.Unmarshal(rec.Body.Bytes(), &report); err != nil || !strings.Contains(rec.Body.String(), `"nack": "`+static+`: no"`) {
		t.Errorf("status: %v\n%s", err, rec.Body)
	}
	c.close()
	p.eventually("it is gone", func(r reports.Report) bool { return len(r.Proxies) == 0 })
}

func TestByName(t *testing.T) {
	t.Parallel()
	p := newPlane(t, t.TempDir())
	// what is on the client's own node comes unasked
	elsewhere := func(name, ip string) string { return strings.ReplaceAll(podYAML(name, ip), "node-1", "node-2") }
	p.write("a.yaml", elsewhere("a", "10.0.0.1"))
	p.eventually("the pod", func(r reports.Report) bool { return r.Resources[workloadpb.TypeURL] == 1 })
	c := p.connect(node1)
	const a = "Kubernetes//Pod/shop/a"
	c.send(&discovery.DeltaDiscoveryRequest{Node: c.node, TypeUrl: workloadpb.TypeURL, ResourceNamesSubscribe: []string{"*"}, ResourceNamesUnsubscribe: []string{"*"}})
	c.next(workloadpb.TypeURL, nil, nil)
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: workloadpb.TypeURL, ResourceNamesSubscribe: []string{"/10.0.0.1", "/10.0.0.9"}})
	c.next(workloadpb.TypeURL, []string{a}, []string{"/10.0.0.9"})
	p.write("b.yaml", elsewhere("b", "10.0.0.9"))
	c.next(workloadpb.TypeURL, []string{"Kubernetes//Pod/shop/b"}, nil)
	p.write("a.yaml", elsewhere("a", "10.0.0.5")) // the address is nobody's now
	c.next(workloadpb.TypeURL, nil, []string{"/10.0.0.1"})
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: workloadpb.TypeURL, ResourceNamesUnsubscribe: []string{"/10.0.0.9"}, ResourceNamesSubscribe: []string{a}})
	c.next(workloadpb.TypeURL, []string{a}, nil)
	p.remove("b.yaml")
	p.remove("a.yaml")
	c.next(workloadpb.TypeURL, nil, []string{a})
}

func TestRights(t *testing.T) {
	t.Parallel()
	p := newPlane(t, t.TempDir())
	foreign, err := token.NewIssuer(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	forged, err := foreign.Issue(token.Claims{Namespace: "culvert-system", ServiceAccount: token.Ref{Name: "ztunnel"}})
	if err != nil {
		t.Fatal(err)
	}
	good, err := p.issuer.Issue(token.Claims{Namespace: "culvert-system", ServiceAccount: token.Ref{Name: "ztunnel"}})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		token string
		who   proxy
		url   string
		want  codes.Code
	}{
		"no token":          {"", node1, authzpb.TypeURL, codes.Unauthenticated},
		"forged":            {forged, node1, authzpb.TypeURL, codes.Unauthenticated},
		"other namespace":   {good, proxy{kind: "ztunnel", namespace: "shop"}, authzpb.TypeURL, codes.PermissionDenied},
		"unknown kind":      {good, proxy{kind: "sidecar", namespace: "culvert-system"}, authzpb.TypeURL, codes.PermissionDenied},
		"type of waypoints": {good, node1, waypointpb.TypeURL, codes.PermissionDenied},
		"other gateway":     {good, proxy{kind: "waypoint", namespace: "culvert-system", gateway: "other"}, waypointpb.TypeURL, codes.PermissionDenied},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cl := p.connectWith(c.token, c.who)
			_ = cl.stream.Send(&discovery.DeltaDiscoveryRequest{Node: cl.node, TypeUrl: c.url}) // io.EOF when it is refused already
			if _, err := cl.stream.Recv(); status.Code(err) != c.want {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

const gatewayYAML = `apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: %[1]s, namespace: shop}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
status: {addresses: [{value: 10.96.0.9%[2]d}]}
---
apiVersion: v1
kind: Service
metadata: {name: s%[2]d, namespace: shop, labels: {istio.io/use-waypoint: %[1]s}}
spec: {clusterIP: 10.96.0.%[2]d, ports: [{name: http, port: 80}]}
---
`

func TestWaypointScope(t *testing.T) {
	t.Parallel()
	p := newPlane(t, t.TempDir())
	p.write("one.yaml", fmt.Sprintf(gatewayYAML, "one", 1))
	p.write("two.yaml", fmt.Sprintf(gatewayYAML, "two", 2))
	p.eventually("all objects", func(r reports.Report) bool { return r.Resources[workloadpb.TypeURL] == 2 })
	c := p.connect(proxy{"waypoint", "shop", "one", "one"})
	c.subscribe(waypoint.ClusterTypeURL, nil)
	c.next(waypoint.ClusterTypeURL, []string{"outbound|80||s1.shop.svc.cluster.local"}, nil)
	c.subscribe(waypoint.RouteTypeURL, nil)
	c.next(waypoint.RouteTypeURL, nil, nil)
	c.subscribe(waypointpb.TypeURL, nil)
	const d1, d2 = "shop/s1.shop.svc.cluster.local/80", "shop/s2.shop.svc.cluster.local/80"
	c.next(waypointpb.TypeURL, []string{d1}, nil)

	p.write("route.yaml", `apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: s1}]
  rules: [{backendRefs: [{name: s2, port: 80}]}]
`)
	c.next(waypoint.ClusterTypeURL, []string{"outbound|80||s2.shop.svc.cluster.local"}, nil)
	c.next(waypoint.RouteTypeURL, []string{d1}, nil)
	c.next(waypointpb.TypeURL, []string{d1}, nil)

	// The other service moves over to this waypoint, and away again.
	p.write("two.yaml", strings.Replace(fmt.Sprintf(gatewayYAML, "two", 2), "use-waypoint: two", "use-waypoint: one", 1))
	c.next(waypointpb.TypeURL, []string{d2}, nil)
	p.write("two.yaml", fmt.Sprintf(gatewayYAML, "two", 2))
	c.next(waypointpb.TypeURL, nil, []string{d2})
}

// TestManyClients: everybody is told of every change, though one does not read.
func TestManyClients(t *testing.T) {
	t.Parallel()
	p := newPlane(t, t.TempDir())
	p.write("pods.yaml", strings.Repeat("---\n", 3)+podYAML("first", "10.0.0.1"))
	p.eventually("the pod", func(r reports.Report) bool { return r.Resources[workloadpb.TypeURL] == 1 })
	deaf := p.connect(node1)
	deaf.subscribe(workloadpb.TypeURL, nil)
	var clients []*client
	for range 20 {
		c := p.connect(node1)
		c.subscribe(workloadpb.TypeURL, nil)
		c.next(workloadpb.TypeURL, []string{"Kubernetes//Pod/shop/first"}, nil)
		clients = append(clients, c)
	}
	big := strings.Repeat("x", 100<<10) // fills the windows of whoever does not read
	for i := range 10 {
		ip := fmt.Sprintf("10.0.1.%d", i)
		p.write("pods.yaml", strings.Replace(podYAML("first", ip), "nodeName: node-1", "nodeName: "+big+ip, 1))
		for _, c := range clients {
			r := c.next(workloadpb.TypeURL, []string{"Kubernetes//Pod/shop/first"}, nil)
			if got := r.Resources[0].Aliases[0]; got != "/"+ip {
				t.Fatalf("got %s, want %s", got, ip)
			}
		}
	}
	// When the deaf one reads at last, what came meanwhile comes as one.
	seen := 0
	for last := ""; last != "/10.0.1.9"; seen++ {
		last = deaf.recv().Resources[0].Aliases[0]
	}
	if seen > 10 {
		t.Errorf("%d responses for 11 states", seen)
	}
}

// TestFoldersOfControllers: patches add annotations to pods of any layer.
func TestFoldersOfControllers(t *testing.T) {
	t.Parallel()
	p := newPlane(t, t.TempDir())
	p.write("a.yaml", podYAML("a", "10.0.0.1"))
	c := p.connect(node1)
	p.eventually("the pod", func(r reports.Report) bool { return r.Resources[workloadpb.TypeURL] == 1 })
	c.subscribe(workloadpb.TypeURL, nil)
	c.next(workloadpb.TypeURL, []string{"Kubernetes//Pod/shop/a"}, nil)
	if err := os.MkdirAll(p.dir+"/patches/node-1", 0o755); err != nil {
		t.Fatal(err)
	}
	patch := "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: shop, annotations: {ambient.istio.io/redirection: enabled}}\n"
	if err := os.WriteFile(p.dir+"/patches/node-1/a.yaml", []byte(patch), 0o644); err != nil {
		t.Fatal(err)
	}
	r := c.next(workloadpb.TypeURL, []string{"Kubernetes//Pod/shop/a"}, nil)
	var addr workloadpb.Address
	if err := r.Resources[0].Resource.UnmarshalTo(&addr); err != nil || addr.GetWorkload().GetTunnelProtocol() != workloadpb.TunnelProtocol_HBONE {
		t.Errorf("%v %v", &addr, err)
	}
}

func TestParseConfig(t *testing.T) {
	t.Parallel()
	if _, err := ParseConfig([]string{"--folder", "x", "--state", "y"}, nil, io.Discard); err == nil || !strings.Contains(err.Error(), "--token-keys") {
		t.Errorf("err %v", err)
	}
	if _, err := ParseConfig([]string{"--ip", "x", "--folder", "x", "--state", "y", "--token-keys", "z"}, nil, io.Discard); err == nil {
		t.Error("bad --ip accepted")
	}
	c, err := ParseConfig([]string{"--folder", "a", "--folder=b", "--patches", "p", "--state", "s", "--token-keys", "t", "--ip", "172.30.0.2", "--hostname", "cp", "--network", "n1"},
		[]string{"LOG_LEVEL=debug"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(c.Layers.Base, []string{"a", "b"}) || !slices.Contains(c.Hostnames, "cp") || len(c.Addresses) != 3 || c.LogLevel != "debug" || c.Mesh.Network != "n1" {
		t.Errorf("config %+v", c)
	}
}
