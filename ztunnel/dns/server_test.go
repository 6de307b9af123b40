package dns

import (
	"bytes"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// TestLocal: names of the mesh are answered here, over either protocol.
func TestLocal(t *testing.T) {
	t.Parallel()
	r := startResolver(t, options{})
	for _, c := range []struct {
		name  string
		qtype uint16
		want  []string
	}{
		{"cart.shop.svc.cluster.local", dns.TypeA, []string{"10.1.0.1"}},
		{"CaRt.ShOp.svc.cluster.local", dns.TypeAAAA, []string{"fd01::1"}},
		{"cart", dns.TypeA, []string{"10.1.0.1"}},
		{"api.example.com", dns.TypeA, []string{"240.240.0.1"}},
		{"api.example.com", dns.TypeAAAA, nil},
		{"api.example.com.shop.svc.cluster.local", dns.TypeA, []string{"240.240.0.1", "api.example.com."}},
		{"db", dns.TypeA, []string{"10.0.0.2"}},
		{"db-0.db.shop.svc.cluster.local", dns.TypeAAAA, []string{"fd00::2"}},
		{"_80._tcp.cart.shop.svc.cluster.local", dns.TypeSRV, []string{"0 100 80 cart.shop.svc.cluster.local."}},
		{"1.0.1.10.in-addr.arpa", dns.TypePTR, []string{"cart.shop.svc.cluster.local."}},
		{"cart", dns.TypeANY, []string{"10.1.0.1", "fd01::1"}},
	} {
		for _, tcp := range []bool{false, true} {
			q := question(c.name, c.qtype)
			got := r.ask(t, tcp, q)
			d := data(got.Answer)
			slices.Sort(d)
			if got.Rcode != 0 || !slices.Equal(d, c.want) || !got.Authoritative || !got.RecursionAvailable || got.IsEdns0() != nil {
				t.Errorf("%s (tcp %v): %v, want %q", c.name, tcp, got, c.want)
			}
			if len(got.Question) != 1 || got.Question[0] != q.Question[0] {
				t.Errorf("%s: the question came back as %v", c.name, got.Question)
			}
			for _, rr := range got.Answer {
				if rr.Header().Ttl != 30 {
					t.Errorf("%s: TTL %d", c.name, rr.Header().Ttl)
				}
			}
			if len(c.want) == 1 && got.Answer[0].Header().Name != q.Question[0].Name {
				t.Errorf("asked for %s, told of %s", q.Question[0].Name, got.Answer[0].Header().Name)
			}
		}
	}
	if n := r.value(t, "istio_dns_requests_total", "udp"); n != 11 {
		t.Errorf("%v requests over UDP counted, want 11", n)
	}
}

// TestSize: an answer that does not fit is cut, says so, and comes whole over TCP.
func TestSize(t *testing.T) {
	t.Parallel()
	r := startResolver(t, options{})
	q := question("big", dns.TypeA)
	if got := r.ask(t, false, q); !got.Truncated || len(got.Answer) == 0 || len(got.Answer) >= 100 {
		t.Errorf("in 512 bytes: truncated %v, %d addresses", got.Truncated, len(got.Answer))
	}
	if got := r.ask(t, true, q); got.Truncated || len(got.Answer) != 100 {
		t.Errorf("over TCP: truncated %v, %d addresses", got.Truncated, len(got.Answer))
	}
	orders := map[string]bool{}
	for range 5 {
		orders[strings.Join(data(r.ask(t, true, q).Answer), " ")] = true
	}
	if len(orders) == 1 {
		t.Error("five answers in the same order")
	}
	q.SetEdns0(4096, true)
	got := r.ask(t, false, q)
	if got.Truncated || len(got.Answer) != 100 {
		t.Errorf("in 4096 bytes: truncated %v, %d addresses", got.Truncated, len(got.Answer))
	}
	if opt := got.IsEdns0(); opt == nil || opt.UDPSize() != 4096 || !opt.Do() || opt.Version() != 0 {
		t.Errorf("EDNS came back as %v", opt)
	}
}

// TestOddMessages: what nobody may be answered is not answered, what is wrong is
// called wrong.
func TestOddMessages(t *testing.T) {
	t.Parallel()
	r := startResolver(t, options{})
	two := question("cart", dns.TypeA)
	two.Question = append(two.Question, dns.Question{Name: "db.", Qtype: dns.TypeA, Qclass: dns.ClassINET})
	none := new(dns.Msg)
	none.Id = 7
	for _, q := range []*dns.Msg{two, none} {
		if got := r.ask(t, false, q); got.Rcode != dns.RcodeFormatError {
			t.Errorf("%d questions: %v", len(q.Question), got)
		}
	}
	c, err := net.Dial("udp", r.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	response := question("cart", dns.TypeA)
	response.Response = true
	raw, _ := response.Pack()
	good := question("cart", dns.TypeA)
	asked, _ := good.Pack()
	for _, msg := range [][]byte{{}, []byte("short"), raw, asked} {
		c.Write(msg)
	}
	c.SetDeadline(time.Now().Add(patience))
	buf := make([]byte, 512)
	n, err := c.Read(buf)
	if err != nil || !bytes.Equal(buf[:2], asked[:2]) {
		t.Errorf("the first answer is %x (%v), and not of the only proper query", buf[:n], err)
	}
	garbage := append([]byte{1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}, 0xff, 0xff)
	if got := r.raw(t, false, garbage); rcode(got) != dns.RcodeFormatError || got[0] != 1 || got[1] != 2 {
		t.Errorf("garbage is answered with %x", got)
	}
}

// TestUntouched: what is not the mesh's reaches the server as it was but for its
// id, whatever it is, and the answer comes back as it was.
func TestUntouched(t *testing.T) {
	t.Parallel()
	echo := func(raw []byte) []byte {
		answer := append([]byte(nil), raw...)
		answer[2] |= 0x80
		return append(answer, 0) // what we do not understand stays too
	}
	u := startUpstream(t, func(_ *dns.Msg, raw []byte, _ bool) [][]byte { return [][]byte{echo(raw)} })
	r := startResolver(t, options{asked: func() netip.AddrPort { return u.addr }})
	odd := question("x.test", 65280)
	odd.SetEdns0(1400, true)
	odd.IsEdns0().Option = append(odd.IsEdns0().Option, &dns.EDNS0_LOCAL{Code: 65001, Data: []byte("secret")})
	chaos := question("version.bind", dns.TypeTXT)
	chaos.Question[0].Qclass = dns.ClassCHAOS
	update := new(dns.Msg).SetUpdate("x.test.")
	rr, _ := dns.NewRR("a.x.test. 5 IN A 1.2.3.4")
	update.Insert([]dns.RR{rr})
	update.SetTsig("key.", dns.HmacSHA256, 300, 1)
	update.Extra[0].(*dns.TSIG).MAC = "00ff"
	update.Extra[0].(*dns.TSIG).MACSize = 2
	notify := new(dns.Msg).SetNotify("x.test.")
	status := new(dns.Msg)
	status.Id, status.Opcode = 9, dns.OpcodeStatus
	for i, q := range []*dns.Msg{odd, chaos, update, notify, status, question("cart", dns.TypeTXT), question("MiXeD.test", dns.TypeMX)} {
		raw, err := q.Pack()
		if err != nil {
			t.Fatal(err)
		}
		for _, tcp := range []bool{false, true} {
			before := u.queries()
			got := r.raw(t, tcp, raw)
			u.mu.Lock()
			seen := u.seen[len(u.seen)-1]
			u.mu.Unlock()
			if u.queries() != before+1 || !bytes.Equal(seen[2:], raw[2:]) {
				t.Errorf("%d: sent\n%x, came\n%x", i, raw, seen)
			}
			if want := echo(raw); !bytes.Equal(got, want) {
				t.Errorf("%d: answered\n%x, came\n%x", i, want, got)
			}
		}
	}
}

// TestUnknownClient: a pod that the mesh does not know is told so, after a wait.
func TestUnknownClient(t *testing.T) {
	t.Parallel()
	r := startResolver(t, options{unknown: true})
	q := question("cart", dns.TypeA)
	q.SetEdns0(1232, false)
	got := r.ask(t, false, q)
	if got.Rcode != dns.RcodeServerFailure || !strings.Contains(explained(got), "does not know this pod") {
		t.Errorf("%v", got)
	}
	if n := r.value(t, "culvert_ztunnel_dns_refused_total", refusedClient); n != 1 {
		t.Errorf("%v counted", n)
	}
}

// explained returns the words of an error.
func explained(m *dns.Msg) string {
	if opt := m.IsEdns0(); opt != nil {
		for _, o := range opt.Option {
			if ede, ok := o.(*dns.EDNS0_EDE); ok {
				return ede.ExtraText
			}
		}
	}
	return ""
}

// TestBusy: beyond the limit a query is refused at once with a reason, and mesh
// names are answered all the same.
func TestBusy(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	u := startUpstream(t, func(q *dns.Msg, _ []byte, _ bool) [][]byte {
		<-release
		return [][]byte{says1(q, 0, "@ 5 IN A 192.0.2.1")}
	})
	r := startResolver(t, options{servers: []netip.AddrPort{u.addr}, limits: Limits{PodWaiting: 2}})
	var wg sync.WaitGroup
	for _, name := range []string{"a.test", "b.test"} {
		wg.Go(func() {
			if got := r.ask(t, false, question(name, dns.TypeA)); len(got.Answer) != 1 {
				t.Errorf("%s: %v", name, got)
			}
		})
	}
	until(t, "two queries wait", func() bool { return r.value(t, "culvert_ztunnel_dns_waiting", "") == 2 })
	q := question("c.test", dns.TypeA)
	q.SetEdns0(1232, false)
	for _, tcp := range []bool{false, true} {
		if got := r.ask(t, tcp, q); got.Rcode != dns.RcodeServerFailure || !strings.Contains(explained(got), "too many") {
			t.Errorf("tcp %v: %v", tcp, got)
		}
	}
	if got := r.ask(t, false, question("cart", dns.TypeA)); len(got.Answer) != 1 {
		t.Errorf("a name of the mesh meanwhile: %v", got)
	}
	close(release)
	wg.Wait()
	if n := r.value(t, "culvert_ztunnel_dns_refused_total", refusedBusy); n != 2 {
		t.Errorf("%v refused, want 2", n)
	}
	until(t, "nothing waits", func() bool { return r.value(t, "culvert_ztunnel_dns_waiting", "") == 0 })
}

// TestConnsWait: connections that come together, as to a ztunnel that has been away,
// are served one after the other. Of more than may wait some are reset.
func TestConnsWait(t *testing.T) {
	t.Parallel()
	const together = 12
	for _, c := range []struct {
		queued  int
		refused float64
	}{{together, 0}, {together - 5, 4}} {
		r := startResolver(t, options{limits: Limits{PodConns: 1, PodQueued: c.queued}, seat: patience})
		first, err := net.Dial("tcp", r.addr.String())
		if err != nil {
			t.Fatal(err)
		}
		defer first.Close()
		until(t, "the first one is served", func() bool { return r.value(t, "culvert_ztunnel_dns_connections", "") == 1 })
		var answered atomic.Int64
		var wg sync.WaitGroup
		for range together - 1 {
			wg.Go(func() {
				q := dns.Client{Net: "tcp", Timeout: patience}
				if m, _, err := q.Exchange(question("cart", dns.TypeA), r.addr.String()); err == nil && len(m.Answer) == 1 {
					answered.Add(1)
				}
			})
		}
		refused := func() float64 { return r.value(t, "culvert_ztunnel_dns_refused_total", refusedConns) }
		until(t, "everybody waits or is reset", func() bool { return float64(r.queued.n.Load())+refused() == together-1 })
		first.Close()
		wg.Wait()
		if n := refused(); n != c.refused || answered.Load() != together-1-int64(n) {
			t.Errorf("%d may wait: %d answered and %v reset, want %v", c.queued, answered.Load(), n, c.refused)
		}
	}
}

// TestConns: connections are bounded, and several queries share one.
func TestConns(t *testing.T) {
	t.Parallel()
	r := startResolver(t, options{limits: Limits{PodConns: 1}, seat: time.Millisecond})
	c, err := net.Dial("tcp", r.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	var all []byte
	for _, name := range []string{"cart", "db", "api.example.com"} {
		raw, _ := question(name, dns.TypeA).Pack()
		all = append(append(all, byte(len(raw)>>8), byte(len(raw))), raw...)
	}
	if _, err := c.Write(all); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := readMessage(c); err != nil {
			t.Fatal(err)
		}
	}
	if over, err := net.Dial("tcp", r.addr.String()); err == nil { // or reset already
		defer over.Close()
		over.SetDeadline(time.Now().Add(patience))
		if _, err := readMessage(over); err == nil {
			t.Error("a connection over the limit is served")
		}
	}
	until(t, "it is counted", func() bool { return r.value(t, "culvert_ztunnel_dns_refused_total", refusedConns) == 1 })
}
