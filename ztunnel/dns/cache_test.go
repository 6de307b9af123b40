package dns

import (
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func reply(t testing.TB, rcode int, lines ...string) []byte {
	t.Helper()
	return says1(question("a.test", dns.TypeA), rcode, lines...)
}

// TestLifetime: how long an answer is kept.
func TestLifetime(t *testing.T) {
	t.Parallel()
	soa := func(ttl, minimum int) string {
		return fmt.Sprintf("authority: test. %d IN SOA a. b. 1 2 3 4 %d", ttl, minimum)
	}
	for _, c := range []struct {
		what  string
		rcode int
		lines []string
		want  time.Duration
	}{
		{"the shortest TTL", 0, []string{"@ 300 IN CNAME b.test.", "b.test. 60 IN A 192.0.2.1"}, time.Minute},
		{"not longer than we like", 0, []string{"@ 86400 IN A 192.0.2.1"}, maxTTL},
		{"not at all", 0, []string{"@ 0 IN A 192.0.2.1"}, 0},
		{"no data", 0, []string{soa(300, 60)}, time.Minute},
		{"no data, by the SOA's TTL", 0, []string{soa(30, 60)}, 30 * time.Second},
		{"no such name", dns.RcodeNameError, []string{soa(86400, 86400)}, maxNegativeTTL},
		{"nothing, and no word for how long", dns.RcodeNameError, nil, 0},
		{"an alias of nothing", 0, []string{"@ 300 IN CNAME b.test.", soa(60, 60)}, time.Minute},
		{"a failure", dns.RcodeServerFailure, nil, 0},
	} {
		if got, _ := lifetime(reply(t, c.rcode, c.lines...)); got != c.want {
			t.Errorf("%s: %s, want %s", c.what, got, c.want)
		}
	}
}

// TestCacheTime: TTLs run down, what is over is told only when stale will do, and
// that not for ever.
func TestCacheTime(t *testing.T) {
	t.Parallel()
	s := newCache(1 << 20).newScope()
	k, start := cacheKey{"u", "q"}, time.Now()
	s.put(k, reply(t, 0, "@ 100 IN A 192.0.2.1"), start)
	for _, c := range []struct {
		after time.Duration
		stale bool
		ttl   int // -1 = nothing
	}{
		{0, false, 100}, {30 * time.Second, false, 70}, {99900 * time.Millisecond, false, 1},
		{100 * time.Second, false, -1}, {100 * time.Second, true, staleTTL}, {100*time.Second + staleTime, true, -1},
	} {
		msg, ttl := s.get(k, start.Add(c.after), c.stale), -1
		if msg != nil {
			for rr := range records(msg) {
				ttl = int(rr.ttl)
			}
		}
		if ttl != c.ttl {
			t.Errorf("after %s, stale %v: %d, want %d", c.after, c.stale, ttl, c.ttl)
		}
	}
	if n, b := s.cache.size(); n != 0 || b != 0 {
		t.Errorf("%d entries of %d bytes are left", n, b)
	}
}

// TestCacheBytes: the limit holds, and who uses most makes room.
func TestCacheBytes(t *testing.T) {
	t.Parallel()
	c := newCache(100 << 10)
	modest, greedy := c.newScope(), c.newScope()
	now := time.Now()
	msg := reply(t, 0, "@ 100 IN A 192.0.2.1")
	modest.put(cacheKey{"u", "mine"}, msg, now)
	for i := range 5000 {
		greedy.put(cacheKey{"u", string(binary.BigEndian.AppendUint32(nil, uint32(i)))}, msg, now)
		if _, b := c.size(); b > c.limit {
			t.Fatalf("%d bytes", b)
		}
	}
	if modest.get(cacheKey{"u", "mine"}, now, false) == nil {
		t.Error("one pod has taken another's room")
	}
	if greedy.get(cacheKey{"u", string(binary.BigEndian.AppendUint32(nil, 4999))}, now, false) == nil {
		t.Error("the newest answer is not there")
	}
	greedy.close()
	if n, _ := c.size(); n != 1 {
		t.Errorf("%d entries after one pod left", n)
	}
	greedy.put(cacheKey{"u", "late"}, msg, now)
	modest.close()
	if n, b := c.size(); n != 0 || b != 0 {
		t.Errorf("%d entries of %d bytes after all left", n, b)
	}
}

// FuzzMessages holds that no message of a client or a server makes anything fail,
// and that what a client is told can be read.
func FuzzMessages(f *testing.F) {
	q := question("cart.shop", dns.TypeA)
	q.SetEdns0(1232, true)
	raw, _ := q.Pack()
	f.Add(raw, says1(q, 0, "@ 300 IN A 192.0.2.1"))
	f.Add(raw, says1(q, dns.RcodeNameError, "authority: test. 300 IN SOA a. b. 1 2 3 4 60"))
	u := new(dns.Msg).SetUpdate("x.test.")
	up, _ := u.Pack()
	f.Add(up, up)
	view, zone := parseMesh(f, []byte(fuzzMesh))
	client := view.Workload(podUID("client"))
	f.Fuzz(func(t *testing.T, raw, reply []byte) {
		q, err := parse(raw)
		if err == errShort || err == errResponse {
			return
		}
		outs := [][]byte{q.fail(dns.RcodeServerFailure, 0, "why")}
		if err == nil && q.meshes() {
			outs = append(outs, q.respond(Find(view, zone, client, q.question), int(q.size)))
		}
		for _, out := range outs {
			if out == nil {
				continue
			}
			if uerr := new(dns.Msg).Unpack(out); uerr != nil {
				t.Errorf("an answer that cannot be read: %v\n%x", uerr, out)
			}
		}
		if err != nil {
			return
		}
		q.key()
		if !answers(raw, reply, &q) {
			return
		}
		c := newCache(1 << 20).newScope()
		c.put(cacheKey{"u", "q"}, reply, time.Now())
		c.get(cacheKey{"u", "q"}, time.Now(), false)
		markStale(append([]byte(nil), reply...))
		if got := q.fit(append([]byte(nil), reply...), minUDP); len(got) > minUDP && len(got) > q.end+11 {
			t.Errorf("%d bytes", len(got))
		}
	})
}

// An answer to a signed query is signed for whoever asked, and serves nobody else.
func TestSignedIsNotCached(t *testing.T) {
	t.Parallel()
	for _, signed := range []bool{false, true} {
		m := new(dns.Msg)
		m.SetQuestion("example.org.", dns.TypeA)
		if signed {
			m.Extra = append(m.Extra, &dns.TSIG{Hdr: dns.RR_Header{Name: "key.", Rrtype: dns.TypeTSIG, Class: dns.ClassANY},
				Algorithm: dns.HmacSHA256, MAC: "00ff", MACSize: 2})
		}
		raw, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		if q, err := parse(raw); err != nil || q.cacheable() == signed {
			t.Errorf("signed %v: cacheable %v, %v", signed, q.cacheable(), err)
		}
	}
}
