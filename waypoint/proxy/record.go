package proxy

import (
	"encoding/hex"
	"math/rand/v2"
	"time"

	"github.com/culvert-mesh/culvert/pkg/accesslog"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/metrics"
	"github.com/culvert-mesh/culvert/waypoint/stream"
)

// record writes the request's line and counts it.
func (s *session) record() {
	took := time.Since(s.began)
	received, sentBytes := s.srv.Received(), s.srv.Sent()
	requestBytes := uint64(received-s.received) + s.tunnelled
	responseBytes := uint64(sentBytes-s.sent) + s.returned
	s.counted.received, s.counted.sent = received, sentBytes
	if m := s.p.cfg.Requests; m != nil {
		s.series.get(s).Observe(metrics.Response{
			Code:          s.status,
			GRPCStatus:    s.grpcStatus(),
			Flags:         s.flags,
			Duration:      took,
			RequestBytes:  requestBytes,
			ResponseBytes: responseBytes,
		})
	}
	if s.p.cfg.Log != nil {
		s.p.cfg.Log.Request(s.line(took, requestBytes, responseBytes))
	}
}

func (s *session) line(took time.Duration, requestBytes, responseBytes uint64) *accesslog.Request {
	r := &accesslog.Request{
		Source:          s.p.source(&s.conn.Caller),
		Destination:     party(s.endpoint),
		Method:          s.req.Method,
		Authority:       string(s.req.Authority()),
		Path:            string(s.req.Target()),
		Protocol:        s.req.Version.String(),
		Status:          s.status,
		Flags:           s.flags,
		RequestBytes:    requestBytes,
		ResponseBytes:   responseBytes,
		Duration:        took,
		UpstreamLatency: s.upstreamTook,
		Err:             s.err,
	}
	if s.dest != nil {
		r.Service = s.dest.Service.Hostname
	}
	if s.cluster != nil {
		r.Upstream = s.cluster.Name
	}
	if s.route != nil {
		r.Route = s.route.Name
	}
	if id, ok := s.req.Header.Get("x-request-id"); ok {
		r.RequestID = string(id)
	}
	if ua, ok := s.req.Header.Get("user-agent"); ok {
		r.UserAgent = string(ua)
	}
	return r
}

// seriesCache keeps the metric series of the endpoint that was used last: most
// connections use few.
type seriesCache struct {
	workload *mesh.Workload
	protocol string
	series   *metrics.RequestSeries
}

func (c *seriesCache) get(s *session) *metrics.RequestSeries {
	var w *mesh.Workload
	if s.endpoint != nil {
		w = s.endpoint.Workload
	}
	protocol := "http"
	if s.grpc() {
		protocol = "grpc"
	}
	if c.series == nil || c.workload != w || c.protocol != protocol {
		c.workload, c.protocol = w, protocol
		c.series = s.p.cfg.Requests.Series(metrics.RequestFlow{
			Flow:     s.p.flow(&s.conn.Caller, s.dest, s.endpoint),
			Protocol: protocol,
		})
	}
	return c.series
}

// newRequestID makes a random UUID (RFC 9562, version 4) in space.
func newRequestID(space *[36]byte) []byte {
	var b [16]byte
	putUint64(b[:8], rand.Uint64())
	putUint64(b[8:], rand.Uint64())
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	hex.Encode(space[0:], b[0:4])
	hex.Encode(space[9:], b[4:6])
	hex.Encode(space[14:], b[6:8])
	hex.Encode(space[19:], b[8:10])
	hex.Encode(space[24:], b[10:16])
	space[8], space[13], space[18], space[23] = '-', '-', '-', '-'
	return space[:]
}

func putUint64(b []byte, v uint64) {
	for i := range 8 {
		b[i] = byte(v >> (8 * i))
	}
}

func randomUint32() uint32 { return rand.Uint32() }

func clearDeadlines(s stream.Stream) error {
	if err := s.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	return s.SetWriteDeadline(time.Time{})
}
