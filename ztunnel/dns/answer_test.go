package dns

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
	"go.yaml.in/yaml/v3"

	"github.com/culvert-mesh/culvert/pkg/golden"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/workloads"
)

// TestFind runs testdata/*.txtar: a mesh in shorthand, questions, and what is
// wanted for each, line by line.
//
//	client A cart.shop            pod client asks for the addresses of cart.shop
func TestFind(t *testing.T) {
	t.Parallel()
	golden.Cases(t, "testdata/*.txtar", func(t *testing.T, c *golden.Case) {
		view, zone := parseMesh(t, c.Section(t, "mesh.yaml"))
		var got bytes.Buffer
		for line := range strings.Lines(string(c.Section(t, "ask"))) {
			w := strings.Fields(line)
			if len(w) != 3 {
				t.Fatalf("ask %q: want 'pod TYPE name'", line)
			}
			client := view.Workload(podUID(w[0]))
			if client == nil {
				t.Fatalf("ask %q: no workload %q", line, w[0])
			}
			fmt.Fprintln(&got, describe(Find(view, zone, client, Question{w[2], dns.StringToType[w[1]]})))
		}
		c.Want(t, "want", got.String())
	})
}

func describe(a Answer) string {
	if !a.Known {
		return "forward"
	}
	s := "of " + a.Service.String() + ":"
	if a.Alias != "" {
		s += " alias " + a.Alias
	}
	for _, ip := range a.Addrs {
		s += " " + ip.String()
	}
	for _, n := range a.Names {
		s += " " + n
	}
	for _, t := range a.Targets {
		s += fmt.Sprintf(" %s:%d%v", t.Name, t.Port, t.Addrs)
	}
	return s
}

// shorthand is the mesh.yaml of a case.
type shorthand struct {
	Domain, Preferred string
	Workloads         []struct {
		Name, NS, Of, Network string
		IP                    []string
		Unhealthy             bool
		Services              map[string]map[uint16]uint16
	}
	Services []struct {
		Host, NS                     string
		VIP, CIDR                    []string
		Ports                        map[uint16]uint16
		AllowAll, Canonical, Private bool
	}
}

func podUID(name string) mesh.UID { return mesh.UID("Kubernetes//Pod/" + name) }

func parseMesh(t testing.TB, text []byte) (workloads.View, Zone) {
	t.Helper()
	var s shorthand
	dec := yaml.NewDecoder(bytes.NewReader(text))
	dec.KnownFields(true)
	if err := dec.Decode(&s); err != nil {
		t.Fatalf("mesh.yaml: %v", err)
	}
	var u workloads.Update
	for _, in := range s.Workloads {
		w := &mesh.Workload{UID: podUID(in.Name), Name: in.Name, Namespace: in.NS, WorkloadName: in.Of, Network: mesh.Network(in.Network), ServiceAccount: "default"}
		for _, ip := range in.IP {
			w.Addresses = append(w.Addresses, netip.MustParseAddr(ip))
		}
		if in.Unhealthy {
			w.Status = mesh.Unhealthy
		}
		for name, ports := range in.Services {
			n, err := mesh.ParseServiceName(name)
			if err != nil {
				t.Fatal(err)
			}
			w.Services = append(w.Services, mesh.Membership{Service: n, Ports: portList(ports)})
		}
		slices.SortFunc(w.Services, func(a, b mesh.Membership) int { return strings.Compare(a.Service.String(), b.Service.String()) })
		u.Workloads = append(u.Workloads, w)
	}
	for _, in := range s.Services {
		svc := &mesh.Service{Name: in.Host, Namespace: in.NS, Hostname: in.Host, Ports: portList(in.Ports), Canonical: in.Canonical, NamespaceOnly: in.Private}
		if in.AllowAll {
			svc.LoadBalancing = &mesh.LoadBalancing{AllowAll: true}
		}
		for _, vip := range in.VIP {
			if !strings.Contains(vip, "/") {
				vip = "/" + vip
			}
			a, err := mesh.ParseNetAddr(vip)
			if err != nil {
				t.Fatal(err)
			}
			svc.VIPs = append(svc.VIPs, a)
		}
		for _, cidr := range in.CIDR {
			svc.CIDRs = append(svc.CIDRs, mesh.NetPrefix{Prefix: netip.MustParsePrefix(cidr)})
		}
		u.Services = append(u.Services, svc)
	}
	store := workloads.New()
	store.Apply(u)
	domain := s.Domain
	if domain == "" {
		domain = "cluster.local"
	}
	return store.View(), Zone{Domain: domain, Preferred: s.Preferred}
}

func portList(m map[uint16]uint16) (ports []mesh.Port) {
	for service, target := range m {
		ports = append(ports, mesh.Port{Service: service, Target: target})
	}
	slices.SortFunc(ports, func(a, b mesh.Port) int { return int(a.Service) - int(b.Service) })
	return ports
}

func TestReversed(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"4.3.2.1.in-addr.arpa":   "1.2.3.4",
		"4.3.2.in-addr.arpa":     "",
		"4.3.2.256.in-addr.arpa": "",
		"b.8.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa": "2001:db8::8b",
		"bx8.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa": "",
		"0.8.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa":     "",
		"example.com": "",
	} {
		a, ok := reversed(name)
		if ok != (want != "") || ok && a.String() != want {
			t.Errorf("%s: %v %v, want %q", name, a, ok, want)
		}
	}
	for _, s := range []string{"10.244.1.5", "fd00:244:1::5", "2001:db8::8b"} {
		arpa, err := dns.ReverseAddr(s)
		if err != nil {
			t.Fatal(err)
		}
		if a, ok := reversed(plain(arpa)); !ok || a.String() != s {
			t.Errorf("%s: %v %v, want %s", arpa, a, ok, s)
		}
	}
}

// FuzzFind holds that no name makes the decision fail, and that what it answers
// fits the question.
func FuzzFind(f *testing.F) {
	view, zone := parseMesh(f, []byte(fuzzMesh))
	client := view.Workload(podUID("client"))
	for _, s := range []string{"cart", "cart.shop", "_80._tcp.cart.shop.svc.cluster.local", "1.0.1.10.in-addr.arpa", "a.example.com.shop.svc.cluster.local.", "..", "*."} {
		f.Add(s, dns.TypeA)
		f.Add(s, dns.TypeSRV)
		f.Add(s, dns.TypePTR)
	}
	f.Fuzz(func(t *testing.T, name string, qtype uint16) {
		a := Find(view, zone, client, Question{name, qtype})
		for _, ip := range a.Addrs {
			if !a.Known || !wants(qtype, ip) {
				t.Errorf("%q type %d: %v", name, qtype, ip)
			}
		}
	})
}

const fuzzMesh = `
workloads:
- {name: client, ns: shop, ip: [10.0.0.1, "fd00::1"]}
- {name: db-0, of: db, ns: shop, ip: [10.0.0.2, "fd00::2"], services: {shop/db.shop.svc.cluster.local: {5432: 5432}}}
services:
- {host: cart.shop.svc.cluster.local, ns: shop, vip: [10.1.0.1, "fd01::1"], ports: {80: 8080}}
- {host: db.shop.svc.cluster.local, ns: shop, ports: {5432: 5432}}
- {host: "*.example.com", ns: shop, vip: [240.240.0.1]}
`

func BenchmarkFind(b *testing.B) {
	view, zone := parseMesh(b, []byte(fuzzMesh))
	client := view.Workload(podUID("client"))
	for _, c := range []struct{ what, name string }{
		{"full", "cart.shop.svc.cluster.local."},
		{"short", "cart."},
		{"outside", "www.golang.org."},
		{"searched", "www.golang.org.shop.svc.cluster.local."},
	} {
		b.Run(c.what, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				Find(view, zone, client, Question{c.name, dns.TypeA})
			}
		})
	}
}
