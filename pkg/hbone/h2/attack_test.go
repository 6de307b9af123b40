package h2

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/pkg/hbone/hbonetest"
)

// These tests attack a server over TLS with a certificate that it accepts: what a
// taken-over pod could do. Meanwhile an honest client talks over a stream of its
// own; it must not notice.

// target is a server under attack.
type target struct {
	*testMesh
	t      testing.TB
	budget *hbone.Budget
	tls    *tls.Config // the attacker's

	mu     sync.Mutex
	abuses map[Abuse]int
}

func newTarget(t testing.TB, handler hbone.Handler, adjust ...func(*PoolConfig, *ServerConfig)) *target {
	tg := &target{t: t, budget: hbone.NewBudget(64 << 20), abuses: map[Abuse]int{}}
	limits := func(pc *PoolConfig, sc *ServerConfig) {
		pc.Dial = func(ctx context.Context, addr netip.AddrPort) (*net.TCPConn, error) { // another source than the attacker's
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
			c, err := d.DialContext(ctx, "tcp", addr.String())
			if err != nil {
				return nil, err
			}
			return c.(*net.TCPConn), nil
		}
		sc.Budget = tg.budget
		sc.Gate = NewGate(16, 32)
		sc.HandshakeTimeout = cmp.Or(sc.HandshakeTimeout, time.Minute)
		sc.Abused = func(_ netip.AddrPort, what Abuse) {
			tg.mu.Lock()
			defer tg.mu.Unlock()
			tg.abuses[what]++
		}
	}
	tg.testMesh = newMesh(t, handler, append(adjust, limits)...)
	tg.tls = tg.ca.Client(t, hbonetest.Identity("attacker"), serverID)
	return tg
}

func (tg *target) abused(what Abuse) int {
	tg.mu.Lock()
	defer tg.mu.Unlock()
	return tg.abuses[what]
}

// honest talks on a stream while the attack goes on, and logs how long answers took.
func (tg *target) honest(attack func()) {
	tg.t.Helper()
	client, _ := tg.through(tg.t, app(tg.t, echo), nil)
	var took []time.Duration
	say := func() {
		start := time.Now()
		client.SetDeadline(start.Add(2 * time.Minute))
		_, err := client.Write([]byte("hello"))
		if err == nil {
			_, err = io.ReadFull(client, make([]byte, 5))
		}
		if err != nil {
			tg.t.Fatalf("the honest stream: %v", err)
		}
		took = append(took, time.Since(start))
	}
	say()
	took = took[:0]
	over := make(chan struct{})
	go func() {
		defer close(over)
		attack()
	}()
	for done := false; !done; {
		select {
		case <-over:
			done = true
		default:
		}
		say()
	}
	slices.Sort(took)
	tg.t.Logf("honest stream: %d messages, p50 %v, p99 %v", len(took), took[len(took)/2], took[len(took)*99/100])
}

// attacker is one connection of an attacker.
type attacker struct {
	c   *tls.Conn
	in  *http2.Framer
	fr  *http2.Framer // out
	enc *hpack.Encoder
	buf bytes.Buffer
	end chan string // what the server's last word was
}

// attack connects and greets; the answers are read unless deaf.
func (tg *target) attack(deaf bool, set ...http2.Setting) *attacker {
	tg.t.Helper()
	raw, err := net.Dial("tcp", tg.peer.Addr.String())
	if err != nil {
		tg.t.Fatal(err)
	}
	tg.t.Cleanup(func() { _ = raw.Close() })
	a := &attacker{c: tls.Client(raw, tg.tls), end: make(chan string, 1)}
	if err := a.c.Handshake(); err != nil {
		tg.t.Fatal(err)
	}
	a.in = http2.NewFramer(io.Discard, a.c)
	a.fr = http2.NewFramer(a.c, nil)
	a.fr.AllowIllegalWrites = true
	a.enc = hpack.NewEncoder(&a.buf)
	_, _ = io.WriteString(a.c, http2.ClientPreface)
	_ = a.fr.WriteSettings(set...)
	if !deaf {
		go a.listen()
	}
	return a
}

func (a *attacker) listen() {
	last := ""
	for {
		f, err := a.in.ReadFrame()
		if err != nil {
			a.end <- last
			return
		}
		if g, ok := f.(*http2.GoAwayFrame); ok {
			last = g.ErrCode.String()
		}
	}
}

func (a *attacker) section(fields ...string) []byte {
	a.buf.Reset()
	for i := 0; i < len(fields); i += 2 {
		_ = a.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return a.buf.Bytes()
}

func (a *attacker) connect(id uint32, authority string) error {
	return a.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: a.section(":method", "CONNECT", ":authority", authority), EndHeaders: true})
}

// flood repeats send until the server hangs up, and returns its last word.
func (a *attacker) flood(t testing.TB, send func(n uint32) error) string {
	a.c.SetDeadline(time.Now().Add(2 * time.Minute))
	out := bufio.NewWriterSize(a.c, 4<<10) // many small frames in one write
	a.fr = http2.NewFramer(out, nil)
	a.fr.AllowIllegalWrites = true
	for n := uint32(0); ; n++ {
		if err := send(n); err != nil {
			break
		}
		if n > 5_000_000 {
			t.Error("the server takes everything")
			break
		}
	}
	return <-a.end
}

// What is cheap to send and not to receive ends the attacker's connection, and
// nobody else's. All of it comes in one moment: on a machine with other work the
// attacker may be slower than what is allowed for ever.
func TestFloods(t *testing.T) {
	t.Parallel()
	id := func(n uint32) uint32 { return 2*n + 1 }
	settled := func(send func(a *attacker, n uint32) error) func(*attacker) func(uint32) error {
		return func(a *attacker) func(uint32) error {
			return func(n uint32) error {
				if n == 0 {
					return a.connect(1, "10.0.0.1:80")
				}
				return send(a, n)
			}
		}
	}
	for name, c := range map[string]struct {
		what Abuse
		send func(*attacker) func(uint32) error
	}{
		"rapid reset": {AbuseResets, func(a *attacker) func(uint32) error {
			return func(n uint32) error {
				if err := a.connect(id(n), "10.0.0.1:80"); err != nil {
					return err
				}
				return a.fr.WriteRSTStream(id(n), http2.ErrCodeCancel)
			}
		}},
		"more streams than allowed": {AbuseErrors, func(a *attacker) func(uint32) error {
			return func(n uint32) error { return a.connect(id(n), "10.0.0.1:80") }
		}},
		"PING": {AbuseControl, settled(func(a *attacker, _ uint32) error { return a.fr.WritePing(false, [8]byte{}) })},
		"answers to no PING": {AbuseControl, settled(func(a *attacker, _ uint32) error {
			return a.fr.WritePing(true, [8]byte{})
		})},
		"SETTINGS": {AbuseControl, settled(func(a *attacker, n uint32) error {
			return a.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: n})
		})},
		"PRIORITY": {AbuseControl, settled(func(a *attacker, _ uint32) error {
			return a.fr.WritePriority(1, http2.PriorityParam{Weight: 3})
		})},
		"frames of unknown types": {AbuseControl, settled(func(a *attacker, _ uint32) error {
			return a.fr.WriteRawFrame(0xf0, 0, 0, nil)
		})},
		"large frames of unknown types": {AbuseControl, settled(func(a *attacker, _ uint32) error {
			return a.fr.WriteRawFrame(0xf0, 0, 0, make([]byte, 1<<20))
		})},
		"tiny window updates": {AbuseCredit, settled(func(a *attacker, _ uint32) error { return a.fr.WriteWindowUpdate(1, 1) })},
		"resets of streams that are gone": {AbuseCredit, func(a *attacker) func(uint32) error {
			return func(n uint32) error {
				if n == 0 {
					return a.connect(1, "")
				}
				return a.fr.WriteRSTStream(1, http2.ErrCodeCancel)
			}
		}},
		"empty DATA": {AbuseEmpty, settled(func(a *attacker, _ uint32) error { return a.fr.WriteData(1, false, nil) })},
		"CONTINUATION": {AbuseHeaders, func(a *attacker) func(uint32) error {
			return func(n uint32) error {
				if n == 0 {
					return a.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: a.section(":method", "CONNECT")})
				}
				return a.fr.WriteContinuation(1, false, nil)
			}
		}},
		"a header section without end": {AbuseHeaders, func(a *attacker) func(uint32) error {
			return func(n uint32) error {
				if n == 0 {
					return a.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: a.section(":method", "CONNECT")})
				}
				return a.fr.WriteContinuation(1, false, a.section("x", strings.Repeat("y", 10_000)))
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			moment := time.Now()
			tg := newTarget(t, holdOrPump, func(_ *PoolConfig, sc *ServerConfig) { sc.clock = func() time.Time { return moment } })
			tg.honest(func() {
				a := tg.attack(false)
				if last := a.flood(t, c.send(a)); last != "ENHANCE_YOUR_CALM" && last != "" { // a reset may overtake the word
					t.Errorf("the server's last word: %s", last)
				}
				hbonetest.Until(t, "the attack was told", func() bool { return tg.abused(c.what) > 0 })
			})
		})
	}
}

// holdOrPump serves the honest client's echo, and lets every other CONNECT wait.
func holdOrPump(ctx context.Context, in *hbone.Incoming) {
	if strings.HasPrefix(in.Request.Authority, "127.") {
		pumpTo(ctx, in)
		return
	}
	<-ctx.Done()
}

// A small header block that unpacks to a huge section costs the attacker its
// stream, and no memory: the table is small and the section is cut off.
func TestHeaderBomb(t *testing.T) {
	tg := newTarget(t, holdOrPump)
	tg.honest(func() {
		a := tg.attack(false)
		big := strings.Repeat("z", 3500)
		bomb := []string{":method", "CONNECT", ":authority", "10.0.0.1:80"}
		for range 10_000 {
			bomb = append(bomb, "x-bomb", big) // one byte each once it is in the table
		}
		before := heap()
		for n := range uint32(50) {
			if err := a.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*n + 1, BlockFragment: a.section(bomb...), EndHeaders: true}); err != nil {
				break // cut off, which is as good
			}
		}
		if grown := heap() - before; grown > 16<<20 {
			t.Errorf("50 bombs of 35 MB took %d MB", grown>>20)
		}
		_ = a.c.Close()
		<-a.end
	})
}

// Windows that never open, that overflow, or that open byte by byte keep nothing
// but the attacker's own streams waiting.
func TestWindowGames(t *testing.T) {
	t.Parallel()
	source := app(t, func(c *net.TCPConn) { _, _ = io.Copy(c, zeros{}) })
	tg := newTarget(t, pumpTo)
	tg.honest(func() {
		shut := tg.attack(false, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
		for n := range uint32(100) {
			_ = shut.connect(2*n+1, source)
		}
		over := tg.attack(false)
		_ = over.connect(1, source)
		for range 3 {
			_ = over.fr.WriteWindowUpdate(0, 1<<31-1)
		}
		if last := <-over.end; last != "FLOW_CONTROL_ERROR" && last != "" {
			t.Errorf("overflow: %s", last)
		}
		if used, size := tg.budget.Used(); used > size/4 {
			t.Errorf("the budget: %d of %d used", used, size)
		}
		_ = shut.c.Close()
		<-shut.end
	})
}

// An attacker that asks for much and reads nothing is given up by keepalive; until
// then it costs what its streams may have under way.
func TestUnread(t *testing.T) {
	tg := newTarget(t, pumpTo)
	source := app(t, func(c *net.TCPConn) { _, _ = io.Copy(c, zeros{}) })
	tg.honest(func() {
		a := tg.attack(true, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1})
		_ = a.fr.WriteWindowUpdate(0, 1<<30)
		before := heap()
		for n := range uint32(100) {
			_ = a.connect(2*n+1, source)
		}
		hbonetest.Until(t, "the streams are open", func() bool {
			for _, c := range tg.server.Snapshot() {
				if c.Streams == 100 {
					return true
				}
			}
			return false
		})
		if grown := heap() - before; grown > 48<<20 {
			t.Errorf("100 unread streams took %d MB", grown>>20)
		}
	})
}

// One peer whose bytes nobody reads uses up its share of the budget, and the
// others go on.
func TestShareOfBudget(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	defer close(release)
	sink := app(t, func(*net.TCPConn) { <-release })
	tg := newTarget(t, pumpTo)
	tg.honest(func() {
		a := tg.attack(false)
		for n := range uint32(150) {
			if err := a.connect(2*n+1, sink); err != nil {
				t.Fatal(err)
			}
		}
		// As much as the server's windows take, on all streams.
		a.c.SetWriteDeadline(time.Now().Add(3 * time.Second))
		part := make([]byte, 16<<10)
		for sent := 0; sent < 4<<20; sent += len(part) {
			if err := a.fr.WriteData(uint32(2*(sent/len(part)%150)+1), false, part); err != nil {
				break
			}
		}
		if used, size := tg.budget.Used(); used > size/2 {
			t.Errorf("one peer uses %d of %d", used, size)
		}
		_ = a.c.Close()
	})
}

// Handshakes that dawdle, however many, do not keep an honest one out.
func TestSlowHandshakes(t *testing.T) {
	tg := newTarget(t, pumpTo, func(_ *PoolConfig, sc *ServerConfig) { sc.HandshakeTimeout = 8 * time.Second })
	tg.honest(func() {
		for range 200 {
			c, err := net.Dial("tcp", tg.peer.Addr.String())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = c.Close() })
			_, _ = c.Write([]byte{22, 3, 1}) // the beginning of a ClientHello
		}
		other := tg.peer
		other.LocalIP = netip.MustParseAddr("127.0.0.1") // a key of its own: a new connection
		s, _, err := tg.pool.Open(t.Context(), other, request(app(t, echo)))
		if err != nil {
			t.Errorf("an honest handshake: %v", err)
			return
		}
		_ = s.Close()
		hbonetest.Until(t, "all slow handshakes have ended", func() bool { return tg.server.cfg.Gate.Inside() == 0 })
		if tg.abused(AbuseSlow)+tg.abused(AbuseHandshakes) < 200 {
			t.Errorf("told of %v", tg.abuses)
		}
	})
}

// One address has a limited number of connections.
func TestConnectionsOfOneSource(t *testing.T) {
	t.Parallel()
	tg := newTarget(t, pumpTo, func(_ *PoolConfig, sc *ServerConfig) { sc.MaxConns = 3 })
	var open []*attacker
	for range 3 {
		open = append(open, tg.attack(false))
	}
	raw, err := net.Dial("tcp", tg.peer.Addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	if err := tls.Client(raw, tg.tls).Handshake(); err == nil {
		t.Error("a fourth connection was taken")
	}
	if tg.abused(AbuseConnections) != 1 {
		t.Errorf("told of %v", tg.abuses)
	}
	_ = open[0].c.Close()
	<-open[0].end
	hbonetest.Until(t, "room for another", func() bool {
		tg.server.mu.Lock()
		defer tg.server.mu.Unlock()
		return tg.server.sources[netip.MustParseAddr("127.0.0.1")].conns < 3
	})
	tg.attack(false)
}

// Ten thousand tunnelled connections that say nothing cost little each.
func TestManyIdleConnects(t *testing.T) {
	const conns, streams = 50, 200
	var holding sync.WaitGroup
	holding.Add(conns * streams)
	tg := newTarget(t, func(ctx context.Context, in *hbone.Incoming) {
		if _, port, _ := strings.Cut(in.Request.Authority, ":"); port != "80" {
			pumpTo(ctx, in)
			return
		}
		s, err := in.Accept(hbone.Response{})
		holding.Done()
		if err == nil {
			_, _ = s.Read(make([]byte, 1))
		}
	})
	tg.honest(func() {
		before := heap()
		for range conns {
			a := tg.attack(false)
			for n := range uint32(streams) {
				if err := a.connect(2*n+1, "10.0.0.1:80"); err != nil {
					t.Fatal(err)
				}
			}
		}
		holding.Wait()
		each := (heap() - before) / (conns * streams)
		t.Logf("%d bytes for each of %d connections, both ends", each, conns*streams)
		if each > 16<<10 {
			t.Errorf("%d bytes for each idle connection", each)
		}
	})
}

// heap returns, for tests that run alone, the bytes in use after a collection, and stacks.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

// zeros yields zeros for ever.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// An allowance refills with time, and is never more than full.
func TestAllowance(t *testing.T) {
	r := rate{perSecond: 10, burst: 20}
	var a allowance
	now := time.Now()
	for i := range 20 {
		if !a.take(now, r, 1) {
			t.Fatalf("only %d at once", i)
		}
	}
	now = now.Add(time.Second)
	for i := range 10 {
		if !a.take(now, r, 1) {
			t.Fatalf("only %d after a second", i)
		}
	}
	if a.take(now, r, 1) {
		t.Error("one more")
	}
	now = now.Add(time.Hour)
	if !a.take(now, r, 20) || a.take(now, r, 1) {
		t.Error("not full after an hour")
	}
}

// A share leaves room for others, and its owner a little when the whole is used up.
func TestShare(t *testing.T) {
	whole := hbone.NewBudget(64 << 20)
	greedy, modest := whole.Share(), whole.Share()
	if greedy.Take(17<<20) || !greedy.Take(16<<20) {
		t.Error("a share is a quarter")
	}
	if !modest.Force(1) {
		t.Error("another's share counts")
	}
	for range 4 {
		whole.Share().Force(16 << 20)
	}
	if !whole.Exhausted() || !modest.Force(1000) || modest.Exhausted() || !greedy.Exhausted() {
		t.Error("when all is used up a modest peer goes on and others do not")
	}
	greedy.Give(16 << 20)
	modest.Give(1001)
	if used, _ := whole.Used(); used != 64<<20 {
		t.Errorf("%d bytes used", used)
	}
	if used, _ := modest.Used(); used != 0 {
		t.Errorf("%d bytes used by the modest", used)
	}
}
