package metrics

import (
	"context"
	"maps"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// Requests is the family of istio_request* metrics of a waypoint or gateway.
type Requests struct {
	table *table[RequestFlow, *RequestSeries]
}

// RequestFlow is a flow of requests.
type RequestFlow struct {
	Flow
	Protocol string // request_protocol: http, grpc
}

var (
	requestsTotal    = prometheus.NewDesc("istio_requests_total", "Requests.", nil, nil)
	requestDuration  = prometheus.NewDesc("istio_request_duration_milliseconds", "Time from the first byte of the request to the last of the response.", nil, nil)
	requestBytes     = prometheus.NewDesc("istio_request_bytes", "Size of requests.", nil, nil)
	responseBytes    = prometheus.NewDesc("istio_response_bytes", "Size of responses.", nil, nil)
	requestMessages  = prometheus.NewDesc("istio_request_messages_total", "gRPC messages in requests.", nil, nil)
	responseMessages = prometheus.NewDesc("istio_response_messages_total", "gRPC messages in responses.", nil, nil)
)

// NewRequests registers the family.
func NewRequests(reg prometheus.Registerer, cfg Config) *Requests {
	r := &Requests{}
	r.table = newTable(cfg, requestLabels, overflowRequests, r.newSeries)
	reg.MustRegister(r)
	return r
}

// overflowRequests keeps what this side knows for itself.
func overflowRequests(f RequestFlow) RequestFlow {
	return RequestFlow{Flow: overflowTCP(f.Flow), Protocol: f.Protocol}
}

func (r *Requests) newSeries(l *labelSet) *RequestSeries {
	s := &RequestSeries{family: r, set: l}
	s.responses.Store(&map[responseKey]*responses{})
	return s
}

// Series resolves the labels of a flow of requests. The result may be kept, but
// asking again costs only a map lookup.
func (r *Requests) Series(f RequestFlow) *RequestSeries { return r.table.get(f) }

// Run expires series of departed workloads until ctx ends.
func (r *Requests) Run(ctx context.Context) error { return r.table.run(ctx) }

// Response is what one request came to.
type Response struct {
	Code             int    // response_code; 0 when there was none
	GRPCStatus       string // grpc_response_status; "" unless gRPC
	Flags            string // response_flags; "" = "-"
	Duration         time.Duration
	RequestBytes     uint64
	ResponseBytes    uint64
	RequestMessages  uint64 // gRPC only
	ResponseMessages uint64 // gRPC only
}

// RequestSeries is a label set but for the response's labels.
type RequestSeries struct {
	family  *Requests
	set     *labelSet
	total   atomic.Uint64 // requests, for expiry
	dropped atomic.Bool   // from the table

	mu        sync.Mutex                                 // of writers
	responses atomic.Pointer[map[responseKey]*responses] // replaced to grow
}

// responseKey is the labels that the response decides.
type responseKey struct {
	code        int
	grpc, flags string
}

// responses counts the responses of one key.
type responses struct {
	pairs                               []*dto.LabelPair // sorted
	total, requestMsgs, responseMsgs    atomic.Uint64
	duration, requestSize, responseSize histogram
}

// Observe counts one request.
func (s *RequestSeries) Observe(r Response) {
	if s.dropped.Load() {
		s = s.family.table.restore(s)
	}
	s.total.Add(1)
	if r.Flags == "" {
		r.Flags = "-"
	}
	k := responseKey{r.Code, r.GRPCStatus, r.Flags}
	c := (*s.responses.Load())[k]
	if c == nil {
		c = s.grow(k)
	}
	c.total.Add(1)
	c.duration.observe(uint64(max(r.Duration, 0)), uint64(time.Millisecond))
	c.requestSize.observe(r.RequestBytes, 1)
	c.responseSize.observe(r.ResponseBytes, 1)
	if r.GRPCStatus != "" {
		c.requestMsgs.Add(r.RequestMessages)
		c.responseMsgs.Add(r.ResponseMessages)
	}
}

// grow adds a key, by replacing the map so that readers need no lock.
func (s *RequestSeries) grow(k responseKey) *responses {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := *s.responses.Load()
	if c := old[k]; c != nil {
		return c
	}
	next := maps.Clone(old)
	next[k] = &responses{pairs: s.set.withResponse(k).sorted()}
	s.responses.Store(&next)
	return next[k]
}

func (s *RequestSeries) labels() *labelSet { return s.set }
func (s *RequestSeries) uses() uint64      { return s.total.Load() }
func (s *RequestSeries) revive()           { s.dropped.Store(false) }

func (s *RequestSeries) drop(uses uint64) bool {
	s.dropped.Store(true)
	if s.total.Load() != uses {
		s.dropped.Store(false)
		return false
	}
	return true
}

// statusText is the response_code label. Envoy writes 0 when there was no response.
func statusText(code int) string { return strconv.Itoa(code) }

// Describe implements prometheus.Collector.
func (r *Requests) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{requestsTotal, requestDuration, requestBytes, responseBytes, requestMessages, responseMessages} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (r *Requests) Collect(ch chan<- prometheus.Metric) {
	for _, s := range r.table.all() {
		for k, c := range *s.responses.Load() {
			c.collect(ch, k.grpc != "")
		}
	}
}

func (c *responses) collect(ch chan<- prometheus.Metric, grpc bool) {
	pairs := c.pairs
	ch <- counter{requestsTotal, pairs, c.total.Load()}
	ch <- histogramSample{requestDuration, pairs, &c.duration, uint64(time.Millisecond)}
	ch <- histogramSample{requestBytes, pairs, &c.requestSize, 1}
	ch <- histogramSample{responseBytes, pairs, &c.responseSize, 1}
	if grpc {
		ch <- counter{requestMessages, pairs, c.requestMsgs.Load()}
		ch <- counter{responseMessages, pairs, c.responseMsgs.Load()}
	}
}

// bounds are Envoy's default buckets, for milliseconds and for bytes alike.
var bounds = [...]float64{.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000, 300000, 600000, 1800000, 3600000}

// histogram counts integers into bounds.
type histogram struct {
	buckets [len(bounds) + 1]atomic.Uint64 // the last one is above all bounds
	sum     atomic.Uint64
}

// observe counts n, of which unit make 1 in the units of bounds.
func (h *histogram) observe(n, unit uint64) {
	value := float64(n) / float64(unit)
	i := 0
	for i < len(bounds) && value > bounds[i] {
		i++
	}
	h.buckets[i].Add(1)
	h.sum.Add(n)
}

// histogramSample is a histogram with labels that were sorted beforehand.
type histogramSample struct {
	desc  *prometheus.Desc
	pairs []*dto.LabelPair
	h     *histogram
	unit  uint64
}

// Desc implements prometheus.Metric.
func (s histogramSample) Desc() *prometheus.Desc { return s.desc }

// Write implements prometheus.Metric.
func (s histogramSample) Write(out *dto.Metric) error {
	h := &dto.Histogram{Bucket: make([]*dto.Bucket, len(bounds))}
	var count uint64
	for i := range bounds {
		count += s.h.buckets[i].Load()
		bound, cumulative := bounds[i], count
		h.Bucket[i] = &dto.Bucket{UpperBound: &bound, CumulativeCount: &cumulative}
	}
	count += s.h.buckets[len(bounds)].Load()
	sum := float64(s.h.sum.Load()) / float64(s.unit)
	h.SampleCount, h.SampleSum = &count, &sum
	out.Label, out.Histogram = s.pairs, h
	return nil
}
