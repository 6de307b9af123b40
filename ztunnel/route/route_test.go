package route

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/culvert-mesh/culvert/pkg/golden"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/workloads"
)

// TestCases runs testdata/*.txtar: a mesh in shorthand, connections, and where
// they are wanted to go, line by line.
//
//	client -> 10.1.0.1:80           a program in pod client dials; see Choose
//	client -> 10.1.0.1:80 rand=30   the random number that decides, modulo the total
//	client -> 10.1.0.1:80 avoid=a   endpoint a has failed already
//	client -> 10.1.0.1:80 suspect=a endpoint a has failed for others
//	server <- 10.0.0.2:8080         a CONNECT that arrives at pod server; see Deliver
func TestCases(t *testing.T) {
	t.Parallel()
	golden.Cases(t, "testdata/*.txtar", func(t *testing.T, c *golden.Case) {
		m := parseMesh(t, c.Section(t, "mesh.yaml"))
		var got bytes.Buffer
		for line := range strings.Lines(string(c.Section(t, "flow"))) {
			fmt.Fprintln(&got, m.answer(t, strings.TrimSpace(line)))
		}
		c.Want(t, "want", got.String())
	})
}

// shorthand is the mesh.yaml of a case.
type shorthand struct {
	Workloads []struct {
		Name, NS, SA, Node, Network, Host, Gateway, Waypoint string
		IP                                                   []string
		HBONE, Unhealthy, HostNetwork                        bool
		Locality                                             string // region/zone/subzone
		Capacity                                             *uint32
		Tunnel                                               string // PROXY or NONE, and :port
		Services                                             map[string]map[uint16]uint16
	}
	Services []struct {
		Name, NS, Waypoint, Mode, Families string
		VIP, CIDR, SANs                    []string
		Ports                              map[uint16]uint16
		Weighted                           map[string]uint32
		Prefer                             []string
		AllowAll, Canonical, Private       bool
	}
}

type testMesh struct {
	store *workloads.Store
	view  workloads.View
}

func parseMesh(t *testing.T, text []byte) testMesh {
	t.Helper()
	var s shorthand
	dec := yaml.NewDecoder(bytes.NewReader(text))
	dec.KnownFields(true)
	if err := dec.Decode(&s); err != nil {
		t.Fatalf("mesh.yaml: %v", err)
	}
	store := workloads.New()
	store.Apply(workloads.Update{Workloads: s.workloads(t), Services: s.services(t)})
	return testMesh{store, store.View()}
}

func (s shorthand) workloads(t *testing.T) (all []*mesh.Workload) {
	for _, in := range s.Workloads {
		w := &mesh.Workload{
			UID: uid(in.Name), Name: in.Name, Namespace: or(in.NS, "default"), Node: in.Node, Hostname: in.Host,
			Network: mesh.Network(in.Network), Cluster: mesh.DefaultCluster, TrustDomain: mesh.DefaultTrustDomain,
			ServiceAccount: or(in.SA, in.Name), Waypoint: gateway(t, in.Waypoint), NetworkGateway: gateway(t, in.Gateway), Capacity: 1,
		}
		for _, ip := range in.IP {
			w.Addresses = append(w.Addresses, netip.MustParseAddr(ip))
		}
		if in.HBONE {
			w.Protocol = mesh.HBONE
		}
		if in.Unhealthy {
			w.Status = mesh.Unhealthy
		}
		if in.HostNetwork {
			w.NetworkMode = mesh.NetworkHost
		}
		if in.Capacity != nil {
			w.Capacity = *in.Capacity
		}
		if p := strings.Split(in.Locality, "/"); len(p) == 3 {
			w.Locality = mesh.Locality{Region: p[0], Zone: p[1], Subzone: p[2]}
		}
		if in.Tunnel != "" {
			proto, port, _ := strings.Cut(in.Tunnel, ":")
			w.AppTunnel = &mesh.AppTunnel{}
			if proto == "PROXY" {
				w.AppTunnel.Protocol = mesh.AppTunnelPROXY
			}
			fmt.Sscan(port, &w.AppTunnel.Port)
		}
		for name, ports := range in.Services {
			w.Services = append(w.Services, mesh.Membership{Service: serviceName(name), Ports: portList(ports)})
		}
		all = append(all, w)
	}
	return all
}

func (s shorthand) services(t *testing.T) (all []*mesh.Service) {
	for _, in := range s.Services {
		n := serviceName(in.Name)
		svc := &mesh.Service{
			Name: in.Name, Namespace: or(in.NS, n.Namespace), Hostname: n.Hostname, Ports: portList(in.Ports), SubjectAltNames: in.SANs,
			Waypoint: gateway(t, in.Waypoint), Canonical: in.Canonical, NamespaceOnly: in.Private,
			IPFamilies: map[string]mesh.IPFamilies{"IPv4": mesh.IPv4Only, "IPv6": mesh.IPv6Only}[in.Families],
		}
		for _, vip := range in.VIP {
			svc.VIPs = append(svc.VIPs, netAddr(t, vip))
		}
		for _, cidr := range in.CIDR {
			svc.CIDRs = append(svc.CIDRs, mesh.NetPrefix{Prefix: netip.MustParsePrefix(cidr)})
		}
		for gw, weight := range in.Weighted {
			svc.WeightedWaypoints = append(svc.WeightedWaypoints, mesh.WeightedGateway{Gateway: *gateway(t, gw), Weight: weight})
		}
		if in.Mode != "" || in.AllowAll {
			svc.LoadBalancing = &mesh.LoadBalancing{AllowAll: in.AllowAll, Mode: map[string]mesh.BalanceMode{
				"strict": mesh.BalanceStrict, "failover": mesh.BalanceFailover, "passthrough": mesh.BalancePassthrough}[in.Mode]}
			for _, p := range in.Prefer {
				svc.LoadBalancing.Preferences = append(svc.LoadBalancing.Preferences, map[string]mesh.LocalityScope{
					"region": mesh.ScopeRegion, "zone": mesh.ScopeZone, "subzone": mesh.ScopeSubzone,
					"node": mesh.ScopeNode, "cluster": mesh.ScopeCluster, "network": mesh.ScopeNetwork}[p])
			}
		}
		all = append(all, svc)
	}
	return all
}

func uid(name string) mesh.UID { return mesh.UID("Kubernetes//Pod/default/" + name) }

func or(s, fallback string) string {
	if s == "" {
		return fallback
	}
	return s
}

// serviceName takes "web" or "namespace/web".
func serviceName(s string) mesh.ServiceName {
	ns, name, ok := strings.Cut(s, "/")
	if !ok {
		ns, name = "default", s
	}
	return mesh.ServiceName{Namespace: ns, Hostname: name + "." + ns + ".svc.cluster.local"}
}

// gateway takes a service's name, "namespace/name", or "network/address" with an
// optional port; "address" alone is in the network without a name.
func gateway(t *testing.T, s string) *mesh.Gateway {
	if s == "" {
		return nil
	}
	network, addr, ok := strings.Cut(s, "/")
	if !ok {
		network, addr = "", s
	}
	if ap, err := netip.ParseAddrPort(addr); err == nil {
		return &mesh.Gateway{Address: mesh.NetAddr{Network: mesh.Network(network), Addr: ap.Addr()}, HBONEPort: ap.Port()}
	}
	if ip, err := netip.ParseAddr(addr); err == nil {
		return &mesh.Gateway{Address: mesh.NetAddr{Network: mesh.Network(network), Addr: ip}}
	}
	return &mesh.Gateway{Service: serviceName(s), HBONEPort: mesh.PortHBONE}
}

// netAddr takes "address" or "network/address".
func netAddr(t *testing.T, s string) mesh.NetAddr {
	if !strings.Contains(s, "/") {
		s = "/" + s
	}
	a, err := mesh.ParseNetAddr(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func portList(m map[uint16]uint16) (ports []mesh.Port) {
	for service, target := range m {
		ports = append(ports, mesh.Port{Service: service, Target: target})
	}
	return ports
}

func (m testMesh) answer(t *testing.T, line string) string {
	t.Helper()
	words := strings.Fields(line)
	if len(words) < 3 {
		t.Fatalf("flow %q: want 'pod -> address' or 'pod <- authority'", line)
	}
	self := m.view.Workload(uid(words[0]))
	if self == nil {
		t.Fatalf("flow %q: no workload %q", line, words[0])
	}
	if words[1] == "<-" {
		return m.arrive(self, words[2:])
	}
	f := Flow{Source: self, Dst: netip.MustParseAddrPort(words[2]), Network: self.Network}
	f.Client = netip.AddrPortFrom(self.Addresses[0], 40000)
	var number uint64
	for _, opt := range words[3:] {
		switch name, value, _ := strings.Cut(opt, "="); name {
		case "rand":
			fmt.Sscan(value, &number)
		case "avoid":
			f.Avoid = append(f.Avoid, uid(value))
		case "suspect":
			f.Suspect = func(w *mesh.Workload) bool { return w.Name == value }
		case "from":
			f.Client = netip.AddrPortFrom(netip.MustParseAddr(value), 40000)
		default:
			t.Fatalf("flow %q: unknown option %q", line, opt)
		}
	}
	f.Rand = func(n uint64) uint64 { return number % n }
	r, err := Choose(m.view, f)
	if err != nil {
		return "refused: " + err.Error()
	}
	return describe(r)
}

func describe(r Route) string {
	s := r.Kind.String() + " to " + r.Next.String()
	if r.Hostname != "" {
		s = fmt.Sprintf("%s to %s port %d", r.Kind, r.Hostname, r.Next.Port())
	}
	if r.Kind.Tunnelled() {
		var ids []string
		for _, id := range r.Expect {
			ids = append(ids, strings.TrimPrefix(id.Principal(), "cluster.local/"))
		}
		s += " as " + strings.Join(ids, "|") + ", target " + r.Authority()
	}
	if r.Kind == DoubleTunnel {
		var ids []string
		for _, id := range r.Inner {
			ids = append(ids, strings.TrimPrefix(id.Principal(), "cluster.local/"))
		}
		s += " as " + strings.Join(ids, "|")
	}
	if r.Workload != nil {
		s += ", pod " + r.Workload.Name
	}
	if r.Waypoint {
		s += " (waypoint)"
	}
	if r.Service != nil {
		s += ", service " + r.Service.Name
	}
	if r.Balanced {
		s += ", balanced"
	}
	return s
}

func (m testMesh) arrive(self *mesh.Workload, words []string) string {
	a := Arrival{Local: self, Accepted: self.Addresses[0], Authority: words[0], Network: self.Network, Loopback: true}
	for _, opt := range words[1:] {
		switch name, value, _ := strings.Cut(opt, "="); name {
		case "at":
			a.Accepted = netip.MustParseAddr(value)
		case "loopback":
			a.Loopback = value != "off"
		}
	}
	d, err := Deliver(m.view, a)
	if err != nil {
		return fmt.Sprintf("%d %s", StatusOf(err), err)
	}
	s := "deliver to " + d.Dial.String()
	if d.Policy != d.Dial {
		s += ", policy sees " + d.Policy.String()
	}
	if d.Proxy {
		s += ", PROXY header for " + d.Original.String()
	}
	if d.Service != nil {
		s += ", service " + d.Service.Name
	}
	return s
}

func benchMesh(endpoints int) (View, Flow) {
	store := workloads.New()
	name := mesh.ServiceName{Namespace: "shop", Hostname: "cart.shop.svc.cluster.local"}
	vip := netip.MustParseAddr("10.96.0.1")
	u := workloads.Update{Services: []*mesh.Service{{
		Name: "cart", Namespace: name.Namespace, Hostname: name.Hostname,
		VIPs: []mesh.NetAddr{{Addr: vip}}, Ports: []mesh.Port{{Service: 80, Target: 8080}},
	}}}
	for i := range endpoints {
		u.Workloads = append(u.Workloads, &mesh.Workload{
			UID: mesh.UID(fmt.Sprintf("Kubernetes//Pod/shop/cart-%d", i)), Namespace: "shop", ServiceAccount: "cart", TrustDomain: "cluster.local",
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})}, Protocol: mesh.HBONE, Capacity: 1,
			Services: []mesh.Membership{{Service: name, Ports: []mesh.Port{{Service: 80, Target: 8080}}}},
		})
	}
	store.Apply(u)
	return store.View(), Flow{
		Source: &mesh.Workload{Namespace: "shop", ServiceAccount: "web"},
		Client: netip.MustParseAddrPort("10.2.0.1:40000"),
		Dst:    netip.AddrPortFrom(vip, 80),
		Rand:   func(n uint64) uint64 { return n / 2 },
	}
}

// TestChooseAllocs holds that a decision costs one allocation: the list of
// identities that are expected of the peer.
func TestChooseAllocs(t *testing.T) {
	v, f := benchMesh(10)
	if _, err := Choose(v, f); err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() { Choose(v, f) }); n > 1 {
		t.Errorf("a tunnel costs %v allocations", n)
	}
	waypoint := *v.Service(mesh.ServiceName{Namespace: "shop", Hostname: "cart.shop.svc.cluster.local"})
	gw := mesh.Gateway{Service: waypoint.Key(), HBONEPort: 80}
	if n := testing.AllocsPerRun(100, func() { chooseGateway(v, f, gw, &waypoint) }); n > 1 {
		t.Errorf("a tunnel to a waypoint costs %v allocations", n)
	}
	f.Dst = netip.MustParseAddrPort("192.0.2.1:80")
	if n := testing.AllocsPerRun(100, func() { Choose(v, f) }); n > 0 {
		t.Errorf("a passthrough costs %v allocations", n)
	}
}

func BenchmarkChoose(b *testing.B) {
	for _, n := range []int{1, 10, 1000} {
		b.Run(fmt.Sprintf("endpoints=%d", n), func(b *testing.B) {
			v, f := benchMesh(n)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Choose(v, f); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkDeliver(b *testing.B) {
	v, _ := benchMesh(10)
	w := v.WorkloadByAddr(mesh.NetAddr{Addr: netip.MustParseAddr("10.1.0.1")})
	a := Arrival{Local: w, Accepted: w.Addresses[0], Authority: "10.1.0.1:8080"}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Deliver(v, a); err != nil {
			b.Fatal(err)
		}
	}
}

// FuzzDeliver holds that no authority reaches an address other than the one that
// the tunnel was accepted on, nor a port of the mesh itself.
func FuzzDeliver(f *testing.F) {
	for _, s := range []string{"10.1.0.1:8080", "[::ffff:10.1.0.1]:8080", "cart.shop.svc.cluster.local:80", "10.1.0.1:15008", ":1", "a:b"} {
		f.Add(s)
	}
	v, _ := benchMesh(2)
	w := v.WorkloadByAddr(mesh.NetAddr{Addr: netip.MustParseAddr("10.1.0.1")})
	f.Fuzz(func(t *testing.T, authority string) {
		d, err := Deliver(v, Arrival{Local: w, Accepted: w.Addresses[0], Authority: authority})
		if err != nil {
			if s := StatusOf(err); s != 400 && s != 503 {
				t.Errorf("%q: status %d", authority, s)
			}
			return
		}
		if d.Dial.Addr() != w.Addresses[0] || ownPort(d.Dial.Port(), false) {
			t.Errorf("%q is delivered to %s", authority, d.Dial)
		}
	})
}
