package proxy

import (
	"github.com/culvert-mesh/culvert/pkg/reason"
	"github.com/culvert-mesh/culvert/pkg/relay"
	"github.com/culvert-mesh/culvert/waypoint/stream"
)

// upgrade passes a 101 on and then bytes both ways, until both sides have ended.
// The client's connection carries no further request.
func (s *session) upgrade() {
	s.watch.stop()
	s.status = s.resp.Status
	if s.dest != nil {
		s.dest.HTTPFilters.Response(&s.x, &s.resp, s.passed)
	}
	if err := s.srv.WriteSwitch(&s.resp); err != nil {
		s.flags, s.err, s.dead = "DC", reason.New(reason.DownstreamClosed, "write response", s.conn.Source.String(), err), true
		return
	}
	var n relay.Counters
	if err := s.switched(&n); err != nil {
		s.err = reason.New(reason.UpstreamReset, "relay", s.endpoint.String(), err)
	}
	s.tunnelled = n.Sent.Load()
	s.returned = n.Received.Load()
	s.up.Close()
}

// switched sends on what has been read beyond the two heads, and then relays.
func (s *session) switched(n *relay.Counters) error {
	// A route's timeout is for the answer, which was the 101.
	if err := clearDeadlines(s.up); err != nil {
		return err
	}
	if b := s.srv.Buffered(); len(b) > 0 {
		if _, err := s.up.Write(b); err != nil {
			return err
		}
	}
	if b := s.up.HTTP.Buffered(); len(b) > 0 {
		if _, err := s.down.Write(b); err != nil {
			return err
		}
		n.Received.Add(uint64(len(b)))
	}
	return stream.Relay(s.ctx, s.down, s.up.Stream, n)
}
