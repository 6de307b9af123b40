package dns

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// learnTime is how long a query waits for the pod's workload to become known. It is
// below the 5 s after which resolvers give up.
const learnTime = 4500 * time.Millisecond

// Server answers the queries of one pod, on the sockets that ServeUDP and ServeTCP
// are given.
//
//	parse     what is asked, and by whom
//	now       what can be said at once: of the mesh, or known from before
//	later     what somebody else has to say first, on a goroutine of its own
type Server struct {
	node      *Node
	cfg       PodConfig
	forwarder *forwarder
	waiting   gate
	queued    gate
	conns     places
	patience  time.Duration // of a connection that waits for a place

	life    context.Context
	end     context.CancelCauseFunc
	flows   tally // queries that wait, connections
	labels  atomic.Pointer[labelled]
	blind   atomic.Bool // it has been said that original destinations are not to be had
	deaf    atomic.Bool // it has been said that a socket fails
	drains  atomic.Bool
	closing sync.Once

	mu   sync.Mutex
	open map[*conn]struct{}
}

// labelled is the labels of a workload, kept for as long as it is the same.
type labelled struct {
	of     *mesh.Workload
	client *client
}

var errClosed = errors.New("the resolver of this pod is closing")

// Close ends everything at once. It may be called again.
func (s *Server) Close() {
	s.closing.Do(func() {
		s.end(errClosed)
		s.mu.Lock()
		for c := range s.open {
			c.Close()
		}
		s.mu.Unlock()
		s.forwarder.close()
		if l := s.labels.Swap(nil); l != nil {
			s.node.metrics.leave(l.client)
		}
	})
}

// Drain lets the queries that wait end, and idle connections at once or, where no
// query has come yet, soon, until ctx ends. The sockets must have been stopped before.
func (s *Server) Drain(ctx context.Context) {
	s.drains.Store(true)
	s.mu.Lock()
	for c := range s.open {
		c.retire()
	}
	s.mu.Unlock()
	stop := context.AfterFunc(ctx, s.Close)
	s.flows.wait()
	stop()
}

// from is where a query came from.
type from struct {
	local, client netip.AddrPort
	tcp           bool
	dialled       netip.AddrPort // over TCP: where the client wanted to go
}

func (f from) protocol() string {
	if f.tcp {
		return "tcp"
	}
	return "udp"
}

// limit is how long an answer may be, in bytes.
func (f from) limit(q *query) int {
	if f.tcp {
		return maxMessage
	}
	return min(int(q.size), maxDatagram)
}

// maxDatagram is what loopback carries in one datagram whatever its headers, in bytes.
const maxDatagram = 65000

// asked returns the name server that the client meant, invalid when that is not known.
func (s *Server) asked(f from) netip.AddrPort {
	dst, err := f.dialled, error(nil)
	if !f.tcp {
		dst, err = s.cfg.Original(f.local, f.client)
	}
	if err != nil && s.life.Err() == nil && !s.blind.Swap(true) {
		s.node.cfg.Log.Warn("cannot tell which name server pods ask: the node's own are asked instead", "pod", s.cfg.Name, "error", err)
	}
	if err != nil || dst == f.local {
		return netip.AddrPort{}
	}
	return dst
}

// handle answers one message, through deliver, now or later, and calls done when
// that is over. raw is used until handle returns.
func (s *Server) handle(raw []byte, f from, deliver func([]byte) error, done func()) {
	if !s.answer(raw, f, deliver, done) {
		done()
	}
}

// answer is handle, but for done when it returns false.
func (s *Server) answer(raw []byte, f from, deliver func([]byte) error, done func()) (waits bool) {
	q, err := parse(raw)
	if errors.Is(err, errShort) || errors.Is(err, errResponse) {
		s.refuse(refusedMalformed)
		return false // whoever answers a response may start a loop
	}
	w := s.cfg.Known()
	count := s.series(w, &q, f)
	count.request()
	if err != nil {
		s.refuse(refusedMalformed)
		_ = deliver(q.fail(dns.RcodeFormatError, 0, ""))
		return false
	}
	msg, to := s.now(&q, w, f)
	if msg != nil {
		_ = deliver(msg)
		return false
	}
	if !enterBoth(&s.waiting, &s.node.waiting) {
		s.refuse(refusedBusy)
		code, text := reasonOf(errBusy)
		_ = deliver(q.fail(dns.RcodeServerFailure, code, text))
		return false
	}
	q.raw = append([]byte(nil), raw...)
	s.flows.begin()
	go s.later(&pending{q: q, client: w, from: f, to: to, count: count, deliver: deliver, done: done})
	return true
}

func (s *Server) refuse(why string) { s.node.metrics.refused.WithLabelValues(why).Inc() }

// now returns what can be answered at once, else the server that is to be asked.
func (s *Server) now(q *query, w *mesh.Workload, f from) (msg []byte, to netip.AddrPort) {
	if q.meshes() {
		if w == nil {
			return nil, s.asked(f)
		}
		if a := Find(s.node.cfg.View, s.node.cfg.Zone, w, q.question); a.Known {
			return q.respond(a, f.limit(q)), to
		}
	}
	to = s.asked(f)
	if msg = s.forwarder.cached(to, q); msg != nil {
		return q.fit(msg, f.limit(q)), to
	}
	return nil, to
}

// meshes reports whether a query may be about the mesh.
func (q *query) meshes() bool { return q.opcode == dns.OpcodeQuery && q.class == dns.ClassINET }

// pending is a query that waits.
type pending struct {
	q       query
	client  *mesh.Workload
	from    from
	to      netip.AddrPort
	count   series
	deliver func([]byte) error
	done    func()
}

func (s *Server) later(p *pending) {
	defer s.flows.end()
	defer p.done()
	defer s.node.waiting.leave()
	defer s.waiting.leave()
	msg, err := s.wait(p)
	switch {
	case err != nil:
		s.node.cfg.Log.Debug("query failed", "pod", s.cfg.Name, "name", p.q.question.Name, "type", typeName(p.q.question.Type), "error", err)
		code, text := reasonOf(err)
		msg = p.q.fail(dns.RcodeServerFailure, code, text)
	case msg == nil:
		return
	}
	_ = p.deliver(msg)
}

// wait returns the answer as soon as there is one; nil when it has been delivered.
func (s *Server) wait(p *pending) ([]byte, error) {
	q, limit := &p.q, p.from.limit(&p.q)
	if q.meshes() && p.client == nil {
		w, err := s.learn()
		if err != nil {
			s.refuse(refusedClient)
			return nil, err
		}
		if a := Find(s.node.cfg.View, s.node.cfg.Zone, w, q.question); a.Known {
			return q.respond(a, limit), nil
		}
	}
	if p.from.tcp && transfer(q.question.Type) {
		return nil, s.relay(p)
	}
	msg, err := s.forwarder.forward(s.life, p.to, q, p.from.tcp, p.count.upstream)
	if err != nil {
		s.refuse(refusedNoUpstream)
		return nil, err
	}
	return q.fit(msg, limit), nil
}

func (s *Server) learn() (*mesh.Workload, error) {
	ctx, cancel := context.WithTimeout(s.life, learnTime)
	defer cancel()
	w, err := s.cfg.Learn(ctx)
	if err != nil {
		return nil, errUnknownClient
	}
	return w, nil
}

// relay passes a zone transfer on.
func (s *Server) relay(p *pending) error {
	servers := choose(p.to, s.node.cfg.Servers())
	if len(servers) == 0 {
		return errNoServers
	}
	start := time.Now()
	err := relay(s.life, s.cfg.Net, servers[0], &p.q, p.deliver)
	p.count.upstream(time.Since(start), err)
	return err
}

// series returns the labels of a query.
func (s *Server) series(w *mesh.Workload, q *query, f from) series {
	l := s.client(w)
	return series{s.node.metrics, typeName(q.question.Type), f.protocol(), l.service, l.revision}
}

// client returns the labels of the pod, and keeps its series alive.
func (s *Server) client(w *mesh.Workload) clientLabels {
	old := s.labels.Load()
	if w == nil || old != nil && old.of == w {
		if w == nil {
			return labelsOf(nil)
		}
		return old.client.labels
	}
	l := labelsOf(w)
	next := &labelled{w, s.node.metrics.join(l)}
	if s.life.Err() != nil || !s.labels.CompareAndSwap(old, next) {
		s.node.metrics.leave(next.client) // another query has told it, or nobody asks any more
		return l
	}
	if old != nil {
		s.node.metrics.leave(old.client)
	}
	return l
}
