package dns

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// patience is how long a test waits for what must come.
const patience = 2 * time.Minute

// upstream is a name server of the test's on loopback, UDP and TCP on one port.
type upstream struct {
	addr netip.AddrPort

	mu   sync.Mutex
	seen [][]byte // as they came
}

// script answers a query at an upstream, over either protocol.
type script func(q *dns.Msg, raw []byte, tcp bool) [][]byte

func startUpstream(t testing.TB, answer script) *upstream {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().(*net.TCPAddr).AddrPort()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
	if err != nil {
		t.Fatal(err)
	}
	u := &upstream{addr: addr}
	var wg sync.WaitGroup
	t.Cleanup(func() { l.Close(); c.Close(); wg.Wait() })
	wg.Go(func() { u.serveUDP(c, answer, &wg) })
	wg.Go(func() { u.serveTCP(l, answer, &wg) })
	return u
}

func (u *upstream) serveUDP(c *net.UDPConn, answer script, wg *sync.WaitGroup) {
	for {
		buf := make([]byte, maxMessage)
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		wg.Go(func() {
			for _, msg := range u.ask(buf[:n], answer, false) {
				c.WriteToUDPAddrPort(msg, from)
			}
		})
	}
}

func (u *upstream) serveTCP(l net.Listener, answer script, wg *sync.WaitGroup) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		wg.Go(func() {
			defer c.Close()
			c.SetDeadline(time.Now().Add(patience))
			raw, err := readMessage(c)
			if err != nil {
				return
			}
			for _, msg := range u.ask(raw, answer, true) {
				writeMessage(c, msg)
			}
		})
	}
}

func (u *upstream) ask(raw []byte, answer script, tcp bool) [][]byte {
	u.mu.Lock()
	u.seen = append(u.seen, raw)
	u.mu.Unlock()
	q := new(dns.Msg)
	q.Unpack(raw)
	return answer(q, raw, tcp)
}

func (u *upstream) queries() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.seen)
}

// says answers with records in zone file form, "@" standing for the name asked.
func says(rcode int, lines ...string) script {
	return func(q *dns.Msg, _ []byte, _ bool) [][]byte { return [][]byte{says1(q, rcode, lines...)} }
}

func says1(q *dns.Msg, rcode int, lines ...string) []byte {
	m := new(dns.Msg).SetRcode(q, rcode)
	for _, line := range lines {
		section := &m.Answer
		if rest, ok := strings.CutPrefix(line, "authority: "); ok {
			section, line = &m.Ns, rest
		}
		rr, err := dns.NewRR(strings.ReplaceAll(line, "@", q.Question[0].Name))
		if err != nil {
			panic(err)
		}
		*section = append(*section, rr)
	}
	if opt := q.IsEdns0(); opt != nil {
		m.SetEdns0(opt.UDPSize(), opt.Do())
	}
	m.Compress = true
	b, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return b
}

// startHeld starts a resolver whose upstream answers when release is closed.
func startHeld(t *testing.T) (r *resolver, u *upstream, release chan struct{}) {
	release = make(chan struct{})
	u = startUpstream(t, func(q *dns.Msg, _ []byte, _ bool) [][]byte {
		<-release
		return [][]byte{says1(q, 0, "@ 60 IN A 192.0.2.1")}
	})
	return startResolver(t, options{servers: []netip.AddrPort{u.addr}}), u, release
}

// silent never answers.
func silent(*dns.Msg, []byte, bool) [][]byte { return nil }

const testMesh = `
workloads:
- {name: client, ns: shop, ip: [10.0.0.1, "fd00::1"]}
- {name: db-0, of: db, ns: shop, ip: [10.0.0.2, "fd00::2"], services: {shop/db.shop.svc.cluster.local: {5432: 5432}}}
services:
- {host: cart.shop.svc.cluster.local, ns: shop, vip: [10.1.0.1, "fd01::1"], ports: {80: 8080}}
- {host: db.shop.svc.cluster.local, ns: shop, ports: {5432: 5432}}
- {host: big.shop.svc.cluster.local, ns: shop, vip: [MANY]}
- {host: api.example.com, ns: shop, vip: [240.240.0.1]}
`

// resolver is a Server on loopback sockets.
type resolver struct {
	*Server
	addr netip.AddrPort
	reg  *prometheus.Registry
}

type options struct {
	asked   func() netip.AddrPort // which server the pod addresses; nil = not known
	servers []netip.AddrPort      // the node's own
	limits  Limits
	each    time.Duration // one try at a server; 0 = as always
	unknown bool          // the pod is not in the mesh's view
	seat    time.Duration // that a connection waits for a place; 0 = as always
}

func startResolver(t testing.TB, o options) *resolver {
	t.Helper()
	var many []string
	for i := range 100 {
		many = append(many, netip.AddrFrom4([4]byte{10, 2, 0, byte(i)}).String())
	}
	view, zone := parseMesh(t, []byte(strings.Replace(testMesh, "MANY", strings.Join(many, ", "), 1)))
	r := &resolver{reg: prometheus.NewRegistry()}
	node := NewNode(NodeConfig{View: view, Zone: zone, Limits: o.limits, Registry: r.reg, Log: slog.New(slog.DiscardHandler),
		Servers: func() []netip.AddrPort { return o.servers }})
	client := view.Workload(podUID("client"))
	if o.unknown {
		client = nil
	}
	r.Server = node.NewServer(PodConfig{
		Name:  "shop/client",
		Known: func() *mesh.Workload { return client },
		Learn: func(ctx context.Context) (*mesh.Workload, error) { return nil, context.DeadlineExceeded },
		Net:   ownNet{},
		Original: func(local, client netip.AddrPort) (netip.AddrPort, error) {
			if o.asked == nil {
				return local, nil
			}
			return o.asked(), nil
		},
	})
	if o.each > 0 {
		r.forwarder.each = o.each
	}
	if o.seat > 0 {
		r.patience = o.seat
	}
	r.serve(t, o)
	return r
}

func (r *resolver) serve(t testing.TB, o options) {
	t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	r.addr = l.Addr().(*net.TCPAddr).AddrPort()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(r.addr))
	if err != nil {
		t.Fatal(err)
	}
	u, err := NewUDP(c)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { l.Close(); u.Close(); r.Close(); wg.Wait(); r.Drain(context.Background()) })
	wg.Go(func() { r.ServeUDP(u) })
	wg.Go(func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			dialled := addrPort(c.LocalAddr())
			if o.asked != nil {
				dialled = o.asked()
			}
			wg.Go(func() { r.ServeConn(c, dialled) })
		}
	})
}

// raw sends bytes and returns what comes back, nil if nothing does in a while.
func (r *resolver) raw(t testing.TB, tcp bool, msg []byte) []byte {
	t.Helper()
	network := "udp"
	if tcp {
		network = "tcp"
	}
	c, err := net.Dial(network, r.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if tcp {
		if err := writeMessage(c, msg); err != nil {
			t.Fatal(err)
		}
		got, err := readMessage(c)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	if _, err := c.Write(msg); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, maxMessage)
	n, err := c.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n]
}

func (r *resolver) ask(t testing.TB, tcp bool, q *dns.Msg) *dns.Msg {
	t.Helper()
	raw, err := q.Pack()
	if err != nil {
		t.Fatal(err)
	}
	got := new(dns.Msg)
	if err := got.Unpack(r.raw(t, tcp, raw)); err != nil {
		t.Fatal(err)
	}
	if got.Id != q.Id || !got.Response {
		t.Errorf("an answer with id %d, response %v; want %d", got.Id, got.Response, q.Id)
	}
	return got
}

func question(name string, qtype uint16) *dns.Msg {
	return new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype)
}

// data is what records say, without their headers.
func data(rrs []dns.RR) (out []string) {
	for _, rr := range rrs {
		out = append(out, strings.TrimPrefix(rr.String(), rr.Header().String()))
	}
	return out
}

// value returns a metric's value by name and one label value; 0 if there is none.
func (r *resolver) value(t testing.TB, name, label string) float64 {
	t.Helper()
	families, err := r.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			if label == "" || hasLabel(m, label) {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	return sum
}

func hasLabel(m *dto.Metric, value string) bool {
	for _, l := range m.GetLabel() {
		if l.GetValue() == value {
			return true
		}
	}
	return false
}

// until waits for a condition.
func until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}
