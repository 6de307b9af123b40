package proxy

import (
	"github.com/culvert-mesh/culvert/pkg/reason"
	"github.com/culvert-mesh/culvert/pkg/relay"
	"github.com/culvert-mesh/culvert/waypoint/http/h1"
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
	client, ok := s.srv.(*h1.ServerConn)
	endpoint, also := s.up.HTTP.(*h1.ClientConn)
	if !ok || !also { // only HTTP/1.1 asks for it, and grants it
		s.dead = true
		return
	}
	if err := client.WriteSwitch(&s.resp); err != nil {
		s.flags, s.err, s.dead = "DC", reason.New(reason.DownstreamClosed, "write response", s.conn.Source.String(), err), true
		return
	}
	var n relay.Counters
	if err := s.switched(client.Buffered(), endpoint.Buffered(), &n); err != nil {
		s.err = reason.New(reason.UpstreamReset, "relay", s.endpoint.String(), err)
	}
	s.tunnelled = n.Sent.Load()
	s.returned = n.Received.Load()
	s.up.Close()
}

// switched sends on what has been read beyond the two heads, and then relays.
func (s *session) switched(sent, answered []byte, n *relay.Counters) error {
	// A route's timeout is for the answer, which was the 101.
	if err := clearDeadlines(s.up); err != nil {
		return err
	}
	if len(sent) > 0 {
		if _, err := s.up.Write(sent); err != nil {
			return err
		}
	}
	if len(answered) > 0 {
		if _, err := s.down.Write(answered); err != nil {
			return err
		}
		n.Received.Add(uint64(len(answered)))
	}
	return stream.Relay(s.ctx, s.down, s.up.Stream, n)
}
