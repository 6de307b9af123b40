package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// forwardTime bounds all tries at all servers. It is below the 5 s after which
	// resolvers give up, so that they get to know what was wrong.
	forwardTime = 4500 * time.Millisecond
	// attempts at least, however few servers there are.
	attempts = 3
	// shunTime is how long a server that did not answer is asked last.
	shunTime = 10 * time.Second
	// retryPause is between tries at a server that refused at once.
	retryPause = 100 * time.Millisecond
)

// forwarder carries the queries of one pod to servers.
type forwarder struct {
	net     Net
	servers func() []netip.AddrPort // the node's own; asked where the client's is not known
	cache   *scope
	total   time.Duration // of all tries
	each    time.Duration // of one

	mu     sync.Mutex
	shared map[cacheKey]*flight
	shun   map[netip.AddrPort]time.Time // until when
}

// flight is one query that is on its way for everybody who asks the same.
type flight struct {
	done chan struct{}
	msg  []byte // not modified; nil with err
	err  error
}

func newForwarder(via Net, servers func() []netip.AddrPort, c *cache) *forwarder {
	return &forwarder{net: via, servers: servers, cache: c.newScope(), total: forwardTime, each: attemptTime,
		shared: map[cacheKey]*flight{}, shun: map[netip.AddrPort]time.Time{}}
}

func (f *forwarder) close() { f.cache.close() }

// choose returns the servers that may answer a query which the pod sent to a
// server: that one, and where it is one of the node's own, or not known, the node's
// others too. A server of another kind knows other names, so that nobody can take
// its place.
func choose(asked netip.AddrPort, own []netip.AddrPort) []netip.AddrPort {
	if !asked.IsValid() {
		return own
	}
	list := []netip.AddrPort{asked}
	if slices.Contains(own, asked) {
		for _, s := range own {
			if s != asked {
				list = append(list, s)
			}
		}
	}
	return list
}

func keyOf(servers []netip.AddrPort, q *query) cacheKey {
	var b strings.Builder
	for _, s := range servers {
		raw, _ := s.MarshalBinary()
		b.WriteByte(byte(len(raw)))
		b.Write(raw)
	}
	return cacheKey{b.String(), q.key()}
}

// cached returns what is known already, or nil.
func (f *forwarder) cached(asked netip.AddrPort, q *query) []byte {
	if !q.cacheable() {
		return nil
	}
	return f.cache.get(keyOf(choose(asked, f.servers()), q), time.Now(), false)
}

// forward returns a server's answer, which the caller may modify. sent is told of
// a query that really goes out and what became of it.
func (f *forwarder) forward(ctx context.Context, to netip.AddrPort, q *query, tcp bool, sent func(time.Duration, error)) ([]byte, error) {
	servers := choose(to, f.servers())
	if len(servers) == 0 {
		return nil, errNoServers
	}
	if !q.cacheable() {
		return f.ask(ctx, servers, q, tcp, sent)
	}
	k := keyOf(servers, q)
	f.mu.Lock()
	if fl := f.shared[k]; fl != nil {
		f.mu.Unlock()
		msg, err := fl.wait(ctx)
		if err == nil && tcp && truncated(msg) { // cut short for somebody who asks over UDP
			return f.ask(ctx, servers, q, tcp, sent)
		}
		return msg, err
	}
	if msg := f.cache.get(k, time.Now(), false); msg != nil { // it came just now
		f.mu.Unlock()
		return msg, nil
	}
	fl := &flight{done: make(chan struct{})}
	f.shared[k] = fl
	f.mu.Unlock()
	fl.msg, fl.err = f.ask(ctx, servers, q, tcp, sent)
	f.land(k, fl)
	return fl.wait(ctx)
}

// land keeps what came and tells those who wait. When nobody answered, what was
// true a while ago has to do.
func (f *forwarder) land(k cacheKey, fl *flight) {
	now := time.Now()
	if fl.err == nil {
		f.cache.put(k, fl.msg, now)
	} else if msg := f.cache.get(k, now, true); msg != nil {
		fl.msg, fl.err = markStale(msg), nil
	}
	f.mu.Lock()
	delete(f.shared, k)
	f.mu.Unlock()
	close(fl.done)
}

func (fl *flight) wait(ctx context.Context) ([]byte, error) {
	select {
	case <-fl.done:
		return append([]byte(nil), fl.msg...), fl.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

var errNoServers = errors.New("no name server is known: none was asked and resolv.conf has none")

// errTime is the end of all tries.
var errTime = fmt.Errorf("no answer within %s", forwardTime)

// ask tries one server after the other until one answers. What changes something
// at the server is sent once.
func (f *forwarder) ask(ctx context.Context, servers []netip.AddrPort, q *query, tcp bool, sent func(time.Duration, error)) (msg []byte, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, f.total, errTime)
	defer cancel()
	start := time.Now()
	defer func() { sent(time.Since(start), err) }()
	servers = f.ordered(servers)
	tries := max(attempts, len(servers))
	if q.opcode != dns.OpcodeQuery {
		tries = 1
	}
	var refused []byte // an answer that another server may better
	for i := range tries {
		server := servers[i%len(servers)]
		got, tryErr := f.try(ctx, server, q, tcp, tries)
		switch {
		case tryErr != nil:
			err = fmt.Errorf("name server %s: %w", server.Addr(), tryErr)
		case refuses(got):
			refused = got
		default:
			return got, nil
		}
		if ctx.Err() != nil || tryErr == nil && i+1 >= len(servers) {
			break
		}
		if i+1 >= len(servers) {
			pause(ctx)
		}
	}
	if refused != nil {
		return refused, nil
	}
	return nil, err
}

func (f *forwarder) try(ctx context.Context, server netip.AddrPort, q *query, tcp bool, tries int) ([]byte, error) {
	limit := f.each
	if tries == 1 {
		limit = f.total
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errNoAnswer)
	defer cancel()
	msg, err := exchange(ctx, f.net, server, q, tcp)
	f.note(server, err)
	return msg, err
}

var errNoAnswer = errors.New("no answer")

// refuses reports whether a server says that it cannot answer.
func refuses(msg []byte) bool {
	rc := rcode(msg)
	return rc == dns.RcodeServerFailure || rc == dns.RcodeRefused || rc == dns.RcodeNotImplemented
}

func pause(ctx context.Context) {
	t := time.NewTimer(retryPause)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// ordered returns the servers with those last that did not answer lately.
func (f *forwarder) ordered(servers []netip.AddrPort) []netip.AddrPort {
	if len(servers) == 1 {
		return servers
	}
	now := time.Now()
	list := slices.Clone(servers)
	f.mu.Lock()
	defer f.mu.Unlock()
	slices.SortStableFunc(list, func(a, b netip.AddrPort) int {
		switch x, y := now.Before(f.shun[a]), now.Before(f.shun[b]); {
		case x == y:
			return 0
		case x:
			return 1
		}
		return -1
	})
	return list
}

// maxShun bounds the servers that are remembered: a pod may address any number.
const maxShun = 64

func (f *forwarder) note(server netip.AddrPort, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil {
		delete(f.shun, server)
		return
	}
	if len(f.shun) >= maxShun {
		clear(f.shun)
	}
	f.shun[server] = time.Now().Add(shunTime)
}

// reasonOf is an error as a client is told it (RFC 8914).
func reasonOf(err error) (code uint16, text string) {
	var netErr net.Error
	switch {
	case errors.Is(err, errNoServers):
		code = dns.ExtendedErrorCodeNotReady
	case errors.Is(err, errBusy), errors.Is(err, errUnknownClient):
		code = dns.ExtendedErrorCodeNotReady
	case errors.Is(err, errNoAnswer), errors.Is(err, errTime):
		code = dns.ExtendedErrorCodeNoReachableAuthority
	case errors.As(err, &netErr):
		code = dns.ExtendedErrorCodeNetworkError
	}
	return code, err.Error()
}
