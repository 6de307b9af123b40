package dns

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync/atomic"

	"github.com/miekg/dns"
)

// maxUDP is the largest answer over UDP without asking the client: larger ones
// are truncated, and the client comes back over TCP.
const maxUDP = 1232

// Server answers over the sockets that it is given.
type Server struct {
	zone atomic.Pointer[Zone]
}

// NewServer returns a Server that answers from z until SetZone.
func NewServer(z *Zone) *Server {
	s := new(Server)
	s.zone.Store(z)
	return s
}

// SetZone makes every later answer come from z.
func (s *Server) SetZone(z *Zone) { s.zone.Store(z) }

// Serve answers on both sockets until ctx ends, and closes them.
func (s *Server) Serve(ctx context.Context, udp net.PacketConn, tcp net.Listener) error {
	servers := []*dns.Server{
		{PacketConn: udp, Handler: s, UDPSize: dns.DefaultMsgSize},
		{Listener: tcp, Handler: s},
	}
	errs := make(chan error, len(servers))
	for _, srv := range servers {
		go func() { errs <- srv.ActivateAndServe() }()
	}
	stop := context.AfterFunc(ctx, func() {
		udp.Close()
		tcp.Close()
	})
	defer stop()
	err := <-errs
	udp.Close()
	tcp.Close()
	err = errors.Join(err, <-errs)
	if ctx.Err() != nil || err == nil {
		return nil
	}
	return fmt.Errorf("serve DNS: %w", err)
}

// ServeDNS answers one message. Addresses come in random order, so that clients
// that take the first one spread.
func (s *Server) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	m := s.zone.Load().Answer(q)
	rand.Shuffle(len(m.Answer), func(i, j int) { m.Answer[i], m.Answer[j] = m.Answer[j], m.Answer[i] })
	if opt := q.IsEdns0(); opt != nil {
		m.SetEdns0(maxUDP, false)
	}
	if _, ok := w.RemoteAddr().(*net.UDPAddr); ok {
		m.Truncate(udpSize(q))
	}
	_ = w.WriteMsg(m) // a client that left gets nothing
}

func udpSize(q *dns.Msg) int {
	if opt := q.IsEdns0(); opt != nil {
		return min(max(int(opt.UDPSize()), dns.MinMsgSize), maxUDP)
	}
	return dns.MinMsgSize
}
