package metrics

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/culvert-mesh/culvert/pkg/reason"
)

// TCP is the family of istio_tcp_* metrics.
//
// Bytes are seen from the server by both reporters, as Istio does: received is
// what the client sent, sent is what the server answered.
type TCP struct {
	table   *table[Flow, *Series]
	sockets [3]atomic.Int64
	// waypoint is set when a waypoint has reported.
	waypoint atomic.Bool
}

var (
	tcpOpened   = tcpDesc("connections_opened_total", "Connections opened.")
	tcpClosed   = tcpDesc("connections_closed_total", "Connections closed.")
	tcpFailed   = tcpDesc("connections_failed_total", "Connections that failed, by response_flags.")
	tcpSent     = tcpDesc("sent_bytes_total", "Bytes that servers sent to clients.")
	tcpReceived = tcpDesc("received_bytes_total", "Bytes that servers received from clients.")
	tcpSockets  = prometheus.NewDesc("istio_tcp_sockets_open", "Sockets open at present.", []string{"reporter"}, nil)
)

// tcpDesc describes a metric whose labels are not fixed: localities may be absent.
func tcpDesc(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("istio_tcp_"+name, help, nil, nil)
}

// NewTCP registers the family.
func NewTCP(reg prometheus.Registerer, cfg Config) *TCP {
	t := &TCP{}
	t.table = newTable(cfg, resolveTCP, overflowTCP, t.newSeries)
	reg.MustRegister(t)
	return t
}

func resolveTCP(f Flow) *labelSet { return tcpLabels(f, "-") }

// overflowTCP keeps what this side knows for itself.
func overflowTCP(f Flow) Flow { return Flow{Reporter: f.Reporter, MutualTLS: f.MutualTLS} }

func (t *TCP) newSeries(l *labelSet) *Series {
	return &Series{family: t, reporter: l.reporter, set: l, pairs: l.sorted()}
}

// Series resolves the labels of a flow. The result may be kept, but asking again
// costs only a map lookup.
func (t *TCP) Series(f Flow) *Series { return t.table.get(f) }

// Run expires series of departed workloads until ctx ends.
func (t *TCP) Run(ctx context.Context) error { return t.table.run(ctx) }

// Live is what the connections that are open now amount to.
type Live struct {
	Connections    uint64
	Sent, Received uint64 // bytes so far: of servers to clients, of clients to servers
}

// Live adds up the connections that a reporter has open.
func (t *TCP) Live(r Reporter) (sum Live) {
	for _, s := range t.table.all() {
		if s.reporter == r {
			s.addLive(&sum)
		}
	}
	return sum
}

// SocketOpened and SocketClosed keep istio_tcp_sockets_open.
func (t *TCP) SocketOpened(r Reporter) {
	if r == Waypoint {
		t.waypoint.Store(true)
	}
	t.sockets[r].Add(1)
}

// SocketClosed is the counterpart of SocketOpened.
func (t *TCP) SocketClosed(r Reporter) { t.sockets[r].Add(-1) }

// Series is one label set: the connections of one flow.
type Series struct {
	family   *TCP
	reporter Reporter
	set      *labelSet
	pairs    []*dto.LabelPair // set, sorted

	opened, closed, failed atomic.Uint64

	mu             sync.Mutex
	sent, received uint64 // of closed connections, and of live ones up to the last scrape
	live           *Conn  // list
	dropped        bool   // from the table
}

// Conn is one counted connection.
type Conn struct {
	series            *Series
	request, response *atomic.Uint64 // live counters; may be nil
	counted           [2]uint64      // of them, already in the series
	prev, next        *Conn          // in the series' list
	done              atomic.Bool
}

// Open counts a connection. request and response are its live byte counters,
// client to server and server to client whichever side reports; either may be nil.
// They are read at every scrape and once more by Close.
func (s *Series) Open(request, response *atomic.Uint64) *Conn {
	c := &Conn{request: request, response: response}
	for !s.link(c) {
		s = s.family.table.restore(s)
	}
	s.opened.Add(1)
	return c
}

// link adds c to the live connections, unless the series has been dropped.
func (s *Series) link(c *Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dropped {
		return false
	}
	c.series = s
	if c.next = s.live; c.next != nil {
		c.next.prev = c
	}
	s.live = c
	return true
}

// Failed counts a connection that could not be made, or that ended with an error,
// under the response_flags of r.
func (s *Series) Failed(r reason.Reason) {
	s.family.table.at(s.set.with("response_flags", r.Flag())).failed.Add(1)
}

// Close counts the end of the connection, once; a non-nil err counts as failed too.
func (c *Conn) Close(err error) {
	if c.done.Swap(true) {
		return
	}
	s := c.series
	s.mu.Lock()
	s.flushLocked(c)
	if c.prev != nil {
		c.prev.next = c.next
	} else {
		s.live = c.next
	}
	if c.next != nil {
		c.next.prev = c.prev
	}
	s.mu.Unlock()
	s.closed.Add(1)
	if err != nil {
		s.Failed(reason.Of(err))
	}
}

// flushLocked adds what c has moved since the last time.
func (s *Series) flushLocked(c *Conn) {
	if c.request != nil {
		n := c.request.Load()
		s.received += n - c.counted[0]
		c.counted[0] = n
	}
	if c.response != nil {
		n := c.response.Load()
		s.sent += n - c.counted[1]
		c.counted[1] = n
	}
}

// bytes returns the totals, live connections included.
func (s *Series) bytes() (sent, received uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := s.live; c != nil; c = c.next {
		s.flushLocked(c)
	}
	return s.sent, s.received
}

func (s *Series) addLive(sum *Live) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := s.live; c != nil; c = c.next {
		sum.Connections++
		if c.request != nil {
			sum.Received += c.request.Load()
		}
		if c.response != nil {
			sum.Sent += c.response.Load()
		}
	}
}

func (s *Series) labels() *labelSet { return s.set }

func (s *Series) uses() uint64 { return s.opened.Load() + s.closed.Load() + s.failed.Load() }

func (s *Series) drop(uses uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dropped = s.live == nil && s.uses() == uses
	return s.dropped
}

func (s *Series) revive() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dropped = false
}

// Describe implements prometheus.Collector.
func (t *TCP) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{tcpOpened, tcpClosed, tcpFailed, tcpSent, tcpReceived, tcpSockets} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (t *TCP) Collect(ch chan<- prometheus.Metric) {
	for _, s := range t.table.all() {
		s.collect(ch)
	}
	for r := range t.sockets {
		if Reporter(r) == Waypoint && !t.waypoint.Load() {
			continue // a ztunnel's reporters are two
		}
		ch <- prometheus.MustNewConstMetric(tcpSockets, prometheus.GaugeValue, float64(t.sockets[r].Load()), Reporter(r).String())
	}
}

// collect sends the metrics that exist for this series.
func (s *Series) collect(ch chan<- prometheus.Metric) {
	if n := s.opened.Load(); n > 0 {
		sent, received := s.bytes()
		ch <- counter{tcpOpened, s.pairs, n}
		ch <- counter{tcpSent, s.pairs, sent}
		ch <- counter{tcpReceived, s.pairs, received}
	}
	if n := s.closed.Load(); n > 0 {
		ch <- counter{tcpClosed, s.pairs, n}
	}
	if n := s.failed.Load(); n > 0 {
		ch <- counter{tcpFailed, s.pairs, n}
	}
}

// counter is a sample with labels that were sorted beforehand.
type counter struct {
	desc  *prometheus.Desc
	pairs []*dto.LabelPair
	value uint64
}

// Desc implements prometheus.Metric.
func (c counter) Desc() *prometheus.Desc { return c.desc }

// Write implements prometheus.Metric.
func (c counter) Write(out *dto.Metric) error {
	value := float64(c.value)
	out.Label = c.pairs
	out.Counter = &dto.Counter{Value: &value}
	return nil
}
