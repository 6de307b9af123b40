package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// refusing is an address on which nothing listens.
func refusing(t testing.TB) netip.AddrPort {
	t.Helper()
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

// TestCached: an answer is kept by its TTL, in the words of each client, per
// server, and not when it says so.
func TestCached(t *testing.T) {
	t.Parallel()
	lines := map[string]string{"pos.test.": "@ 300 IN A 192.0.2.1", "zero.test.": "@ 0 IN A 192.0.2.1",
		"neg.test.": "authority: test. 300 IN SOA a. b. 1 2 3 4 60", "nosoa.test.": "", "fail.test.": ""}
	answer := func(q *dns.Msg, _ []byte, _ bool) [][]byte {
		name := strings.ToLower(q.Question[0].Name)
		rc := map[string]int{"neg.test.": dns.RcodeNameError, "nosoa.test.": dns.RcodeNameError, "fail.test.": dns.RcodeRefused}[name]
		var l []string
		if lines[name] != "" {
			l = append(l, lines[name])
		}
		return [][]byte{says1(q, rc, l...)}
	}
	one, two := startUpstream(t, answer), startUpstream(t, answer)
	var asked atomic.Pointer[upstream]
	asked.Store(one)
	r := startResolver(t, options{asked: func() netip.AddrPort { return asked.Load().addr }})
	for _, c := range []struct {
		name string
		rc   int
		kept bool
	}{
		{"pos.test", 0, true}, {"zero.test", 0, false}, {"neg.test", dns.RcodeNameError, true},
		{"nosoa.test", dns.RcodeNameError, false}, {"fail.test", dns.RcodeRefused, false},
	} {
		asked.Store(one)
		for i, name := range []string{c.name, strings.ToUpper(c.name), c.name} {
			before := one.queries()
			q := question(name, dns.TypeA)
			got := r.ask(t, i == 1, q)
			if got.Rcode != c.rc || got.Question[0].Name != q.Question[0].Name {
				t.Errorf("%s: %v", name, got)
			}
			if sent := one.queries() > before; sent != (i == 0 || !c.kept) {
				t.Errorf("%s, time %d: the server was asked: %v", name, i, sent)
			}
		}
		asked.Store(two)
		before := two.queries()
		r.ask(t, false, question(c.name, dns.TypeA))
		if two.queries() != before+1 {
			t.Errorf("%s: an answer of one server served for another", c.name)
		}
	}
	if n := r.value(t, "culvert_ztunnel_dns_cache_entries", ""); n != 4 {
		t.Errorf("%v entries, want 4", n)
	}
	if sent, took := r.value(t, "istio_dns_upstream_requests_total", ""), r.value(t, "istio_dns_upstream_request_duration_seconds", ""); sent != took || sent != 16 {
		t.Errorf("%v sent, %v timed, want 16", sent, took)
	}
}

// TestShared: those who ask the same at once share one query.
func TestShared(t *testing.T) {
	t.Parallel()
	r, u, release := startHeld(t)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			q := question([]string{"same.test", "SAME.test"}[i%2], dns.TypeA)
			if got := r.ask(t, false, q); len(got.Answer) != 1 || got.Question[0].Name != q.Question[0].Name {
				t.Errorf("%v", got)
			}
		})
	}
	until(t, "all wait", func() bool { return r.value(t, "culvert_ztunnel_dns_waiting", "") == 20 })
	close(release)
	wg.Wait()
	if n := u.queries(); n != 1 {
		t.Errorf("the server was asked %d times", n)
	}
}

// TestFailover: a server that does not answer, or refuses, is passed over, and last
// the next time; where the pod asked somebody else, nobody else is asked.
func TestFailover(t *testing.T) {
	t.Parallel()
	good := startUpstream(t, says(0, "@ 0 IN A 192.0.2.1"))
	ill := startUpstream(t, says(dns.RcodeServerFailure))
	dead := refusing(t)
	for _, servers := range [][]netip.AddrPort{{dead, good.addr}, {ill.addr, good.addr}, {dead, ill.addr, good.addr}} {
		r := startResolver(t, options{servers: servers, asked: func() netip.AddrPort { return servers[0] }})
		for range 2 {
			if got := r.ask(t, false, question("a.test", dns.TypeA)); len(got.Answer) != 1 {
				t.Errorf("%v: %v", servers, got)
			}
		}
	}
	r := startResolver(t, options{servers: []netip.AddrPort{dead, good.addr}})
	r.forwarder.note(dead, errNoAnswer)
	if got := r.forwarder.ordered([]netip.AddrPort{dead, good.addr}); got[0] != good.addr {
		t.Errorf("asked in the order %v", got)
	}
	before := good.queries()
	r = startResolver(t, options{servers: []netip.AddrPort{good.addr}, asked: func() netip.AddrPort { return dead }})
	q := question("a.test", dns.TypeA)
	q.SetEdns0(1232, false)
	got := r.ask(t, false, q)
	if got.Rcode != dns.RcodeServerFailure || !strings.Contains(explained(got), "refused") || good.queries() != before {
		t.Errorf("of a server of another kind: %v", got)
	}
	if n := r.value(t, "istio_dns_upstream_failures_total", ""); n != 1 {
		t.Errorf("%v failures counted", n)
	}
	r = startResolver(t, options{asked: func() netip.AddrPort { return ill.addr }})
	if got := r.ask(t, false, question("a.test", dns.TypeA)); got.Rcode != dns.RcodeServerFailure {
		t.Errorf("the server's own failure: %v", got)
	}
	r = startResolver(t, options{})
	if got := r.ask(t, false, q); got.Rcode != dns.RcodeServerFailure || !strings.Contains(explained(got), "no name server") {
		t.Errorf("without any server: %v", got)
	}
}

// quick is how long a test waits for a server that will not answer.
const quick = 100 * time.Millisecond

// TestSilent: a server that is silent is asked again, and others after it.
func TestSilent(t *testing.T) {
	t.Parallel()
	var times atomic.Int32
	late := startUpstream(t, func(q *dns.Msg, _ []byte, _ bool) [][]byte {
		if times.Add(1) == 1 {
			return nil
		}
		return [][]byte{says1(q, 0, "@ 0 IN A 192.0.2.1")}
	})
	r := startResolver(t, options{servers: []netip.AddrPort{late.addr}, each: quick})
	if got := r.ask(t, false, question("a.test", dns.TypeA)); len(got.Answer) != 1 {
		t.Errorf("%v", got)
	}
	none := startUpstream(t, silent)
	r = startResolver(t, options{servers: []netip.AddrPort{none.addr}, each: quick})
	q := question("a.test", dns.TypeA)
	q.SetEdns0(1232, false)
	if got := r.ask(t, false, q); got.Rcode != dns.RcodeServerFailure || !strings.Contains(explained(got), "no answer") {
		t.Errorf("%v", got)
	}
	if none.queries() != attempts {
		t.Errorf("asked %d times", none.queries())
	}
}

// TestStale: what was true a while ago is told when nobody answers, and marked.
func TestStale(t *testing.T) {
	t.Parallel()
	var up atomic.Bool
	up.Store(true)
	u := startUpstream(t, func(q *dns.Msg, _ []byte, _ bool) [][]byte {
		if up.Load() {
			return [][]byte{says1(q, 0, "@ 300 IN A 192.0.2.1")}
		}
		return nil
	})
	r := startResolver(t, options{servers: []netip.AddrPort{u.addr}, each: quick})
	q := question("a.test", dns.TypeA)
	q.SetEdns0(1232, false)
	r.ask(t, false, q)
	r.node.cache.mu.Lock()
	for _, el := range r.forwarder.cache.entries {
		el.Value.(*entry).expires = time.Now().Add(-time.Second)
	}
	r.node.cache.mu.Unlock()
	up.Store(false)
	got := r.ask(t, false, q)
	if len(got.Answer) != 1 || got.Answer[0].Header().Ttl != staleTTL {
		t.Fatalf("%v", got)
	}
	if opt := got.IsEdns0(); opt == nil || len(opt.Option) != 1 || opt.Option[0].(*dns.EDNS0_EDE).InfoCode != dns.ExtendedErrorCodeStaleAnswer {
		t.Errorf("not marked: %v", got)
	}
}

// TestForged: only an answer to the question that was asked, under its id, counts.
func TestForged(t *testing.T) {
	t.Parallel()
	forge := func(q *dns.Msg, change func(*dns.Msg)) []byte {
		m := q.Copy()
		change(m)
		return says1(m, 0, "@ 300 IN A 6.6.6.6")
	}
	flood := startUpstream(t, func(q *dns.Msg, _ []byte, tcp bool) [][]byte {
		if tcp {
			return [][]byte{says1(q, 0, "@ 300 IN A 192.0.2.2")}
		}
		return slices.Repeat([][]byte{forge(q, func(m *dns.Msg) { m.Id++ })}, 2*maxForged)
	})
	few := startUpstream(t, func(q *dns.Msg, _ []byte, _ bool) [][]byte {
		return [][]byte{
			forge(q, func(m *dns.Msg) { m.Id++ }),
			forge(q, func(m *dns.Msg) { m.Question[0].Name = "evil.test." }),
			forge(q, func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAAAA }),
			[]byte("x"),
			says1(q, 0, "@ 300 IN A 192.0.2.1"),
		}
	})
	for want, u := range map[string]*upstream{"192.0.2.1": few, "192.0.2.2": flood} {
		r := startResolver(t, options{servers: []netip.AddrPort{u.addr}})
		if got := r.ask(t, false, question("a.test", dns.TypeA)); !slices.Equal(data(got.Answer), []string{want}) {
			t.Errorf("%v, want %s", got, want)
		}
	}
}

// TestTruncatedUpstream: what does not fit the server's datagram is fetched over
// TCP, kept whole, and given to each client as it can take it.
func TestTruncatedUpstream(t *testing.T) {
	t.Parallel()
	var lines []string
	for i := range 100 {
		lines = append(lines, fmt.Sprintf("@ 300 IN A 192.0.2.%d", i))
	}
	u := startUpstream(t, func(q *dns.Msg, _ []byte, tcp bool) [][]byte {
		if tcp {
			return [][]byte{says1(q, 0, lines...)}
		}
		cut := says1(q, 0)
		cut[2] |= 2
		return [][]byte{cut}
	})
	r := startResolver(t, options{servers: []netip.AddrPort{u.addr}})
	q := question("a.test", dns.TypeA)
	if got := r.ask(t, false, q); !got.Truncated || len(got.Answer) != 0 {
		t.Errorf("in 512 bytes: %v", got)
	}
	if got := r.ask(t, true, q); got.Truncated || len(got.Answer) != 100 {
		t.Errorf("over TCP: truncated %v, %d addresses", got.Truncated, len(got.Answer))
	}
	if u.queries() != 2 {
		t.Errorf("asked %d times, want once over either protocol", u.queries())
	}
	q.SetEdns0(8192, true)
	if got := r.ask(t, false, q); got.Truncated || len(got.Answer) != 100 || got.IsEdns0() == nil {
		t.Errorf("in 8192 bytes: truncated %v, %d addresses", got.Truncated, len(got.Answer))
	}
	q.SetEdns0(600, true)
	got := r.ask(t, false, q)
	if opt := got.IsEdns0(); !got.Truncated || opt == nil || !opt.Do() || opt.UDPSize() != 600 {
		t.Errorf("in 600 bytes: %v", got)
	}
	only := startUpstream(t, func(q *dns.Msg, _ []byte, tcp bool) [][]byte {
		cut := says1(q, 0, "@ 300 IN A 192.0.2.1")
		cut[2] |= 2
		return map[bool][][]byte{false: {cut}}[tcp]
	})
	r = startResolver(t, options{servers: []netip.AddrPort{only.addr}})
	if got := r.ask(t, false, question("a.test", dns.TypeA)); !got.Truncated || len(got.Answer) != 1 {
		t.Errorf("of a server without TCP: %v", got)
	}
}

// TestTransfer: a zone transfer's messages are all handed on.
func TestTransfer(t *testing.T) {
	t.Parallel()
	u := startUpstream(t, func(q *dns.Msg, _ []byte, _ bool) (all [][]byte) {
		for i := range 5 {
			all = append(all, says1(q, 0, fmt.Sprintf("a%d.test. 5 IN A 192.0.2.%d", i, i)))
		}
		return all
	})
	r := startResolver(t, options{asked: func() netip.AddrPort { return u.addr }})
	c, err := net.Dial("tcp", r.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	q := question("test", dns.TypeAXFR)
	raw, _ := q.Pack()
	if err := writeMessage(c, raw); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		msg, err := readMessage(c)
		if err != nil {
			t.Fatal(err)
		}
		got := new(dns.Msg)
		if err := got.Unpack(msg); err != nil || got.Id != q.Id || got.Answer[0].Header().Name != fmt.Sprintf("a%d.test.", i) {
			t.Errorf("message %d: %v %v", i, got, err)
		}
	}
}

func TestResolver(t *testing.T) {
	t.Parallel()
	var up atomic.Bool
	up.Store(true)
	u := startUpstream(t, func(q *dns.Msg, _ []byte, _ bool) [][]byte {
		switch {
		case !up.Load():
			return [][]byte{says1(q, dns.RcodeServerFailure)}
		case q.Question[0].Name != "a.test.":
			return [][]byte{says1(q, dns.RcodeNameError, "authority: test. 300 IN SOA a. b. 1 2 3 4 60")}
		case q.Question[0].Qtype == dns.TypeA:
			return [][]byte{says1(q, 0, "@ 70 IN CNAME b.test.", "b.test. 60 IN A 192.0.2.1")}
		}
		return [][]byte{says1(q, 0, "@ 90 IN AAAA 2001:db8::1")}
	})
	r := NewResolver(ResolverConfig{Servers: func() []netip.AddrPort { return []netip.AddrPort{u.addr} }})
	for range 3 {
		addrs, ttl, err := r.Lookup(t.Context(), "ip", "A.test")
		slices.SortFunc(addrs, netip.Addr.Compare)
		if fmt.Sprint(addrs) != "[192.0.2.1 2001:db8::1]" || ttl > time.Minute || ttl < 50*time.Second || err != nil {
			t.Errorf("%v %v %v", addrs, ttl, err)
		}
		if addrs, err := r.LookupNetIP(t.Context(), "ip6", "a.test."); fmt.Sprint(addrs) != "[2001:db8::1]" || err != nil {
			t.Errorf("%v %v", addrs, err)
		}
		var none *net.DNSError
		if _, err := r.LookupNetIP(t.Context(), "ip", "none.test"); !errors.As(err, &none) || !none.IsNotFound {
			t.Errorf("a host that does not exist: %v", err)
		}
	}
	if u.queries() != 4 {
		t.Errorf("the server was asked %d times, want 4", u.queries())
	}
	up.Store(false)
	if _, err := r.LookupNetIP(t.Context(), "ip", "other.test"); err == nil {
		t.Error("a failure is no error")
	}
	for host, want := range map[string]string{"192.0.2.9": "[192.0.2.9]", "localhost": "[127.0.0.1]"} {
		if addrs, err := r.LookupNetIP(t.Context(), "ip", host); fmt.Sprint(addrs) != want || err != nil {
			t.Errorf("%s: %v %v", host, addrs, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.LookupNetIP(ctx, "ip", "later.test"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestSystemServers(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "resolv.conf")
	if got := SystemServers(path)(); got != nil {
		t.Errorf("without a file: %v", got)
	}
	text := "# nameserver 9.9.9.9\nsearch a b\nnameserver 10.96.0.10\nnameserver fd00::a # second\nnameserver\nnameserver x\noptions ndots:5\n"
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := SystemServers(path)(); fmt.Sprint(got) != "[10.96.0.10:53 [fd00::a]:53]" {
		t.Errorf("%v", got)
	}
}
