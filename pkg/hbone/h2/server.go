package h2

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
	"github.com/culvert-mesh/culvert/pkg/tlsconn"
)

// Server accepts tunnels. Make one with NewServer.
type Server struct {
	cfg    ServerConfig
	ctx    context.Context // of the handlers; ends with Close
	cancel context.CancelFunc

	mu       sync.Mutex
	conns    map[*conn]struct{}
	greeting map[net.Conn]struct{} // in their handshake
	sources  map[netip.Addr]*source
	draining bool
	closed   bool
	changed  chan struct{} // closed and replaced when a connection has gone
}

// NewServer returns a server that does nothing until Serve is called.
func NewServer(cfg ServerConfig) *Server {
	if cfg.MaxStreams == 0 {
		cfg.MaxStreams = 200
	}
	if cfg.HandshakeTimeout == 0 {
		cfg.HandshakeTimeout = 10 * time.Second
	}
	if cfg.MaxConns == 0 {
		cfg.MaxConns = 1024
	}
	if cfg.Gate == nil {
		cfg.Gate = NewGate(0, 0)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Server{
		cfg: cfg, ctx: ctx, cancel: cancel,
		conns:    make(map[*conn]struct{}),
		greeting: make(map[net.Conn]struct{}),
		sources:  make(map[netip.Addr]*source),
		changed:  make(chan struct{}),
	}
}

// Serve accepts connections until ctx ends or ln fails. When ctx ends it closes
// ln, tells every connection to go away and returns nil; open streams go on:
// wait for them with Drain, end them with Close. A server may serve several
// listeners.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	defer ln.Close()
	for {
		c, err := ln.Accept()
		switch {
		case err == nil:
			go s.serveConn(c)
		case ctx.Err() != nil:
			s.startDrain()
			return nil
		case s.stopped():
			return nil
		case transient(err):
			s.cfg.Log.Warn("accept tunnel", "error", err)
			pause(ctx, 20*time.Millisecond)
		default:
			return reason.New(reason.Internal, "accept tunnel", ln.Addr().String(), err)
		}
	}
}

// transient reports whether Accept may succeed when tried again: out of file
// descriptors, or a connection that was gone before it was accepted.
func transient(err error) bool { return !errors.Is(err, net.ErrClosed) }

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

func (s *Server) stopped() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.draining || s.closed
}

// serveConn serves one accepted connection to its end.
func (s *Server) serveConn(c net.Conn) {
	err := s.ServeConn(c)
	if err != nil {
		s.cfg.Log.Debug("tunnel ended", "peer", c.RemoteAddr(), "error", err)
	}
}

// ServeConn serves one connection to its end, as Serve does for those that it
// accepts, and returns why it ended: nil in good order. It owns c.
func (s *Server) ServeConn(c net.Conn) error {
	defer c.Close()
	share, err := s.arrive(c)
	if err != nil {
		return s.failed(c, err)
	}
	defer s.depart(c)
	tc, err := s.handshake(c)
	if err != nil {
		return s.failed(c, err)
	}
	hc := newConn(tc, false, s.settings(share), share, s.cfg.Log)
	hc.socket = socket(c)
	hc.serverSide = s.newSide(tc)
	if s.cfg.clock != nil {
		hc.clock = s.cfg.clock
	}
	hc.peer = hc.incoming.PeerCerts
	hc.greet(s.cfg.MaxStreams)
	if !s.add(hc, c) {
		return reason.New(reason.Draining, "accept tunnel", c.RemoteAddr().String(), nil)
	}
	defer s.remove(hc)
	hc.recheck(s.cfg.Recheck)
	defer hc.expire().Stop()
	late := time.AfterFunc(s.cfg.HandshakeTimeout, hc.checkGreeted)
	defer late.Stop()
	hc.startPings()
	err = hc.run()
	if calm, ok := errors.AsType[*connError](err); ok && calm.abuse != "" {
		s.abused(c, calm.abuse)
	}
	return err
}

// failed tells of a connection that never became a tunnel.
func (s *Server) failed(c net.Conn, err error) error {
	if s.cfg.ConnError != nil {
		s.cfg.ConnError(remoteAddr(c), err)
	}
	return err
}

// abused tells of a peer that did too much of something.
func (s *Server) abused(c net.Conn, what Abuse) {
	if s.cfg.Abused != nil {
		s.cfg.Abused(remoteAddr(c), what)
	}
}

// source is what all connections from one address have in common.
type source struct {
	conns int
	share *hbone.Budget
}

// arrive counts a connection of a source, and returns its share of the budget.
func (s *Server) arrive(c net.Conn) (*hbone.Budget, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	addr := remoteAddr(c).Addr()
	src := s.sources[addr]
	if src == nil {
		s.forgetSources()
		src = &source{share: s.cfg.Budget.Share()}
		s.sources[addr] = src
	}
	if src.conns >= s.cfg.MaxConns {
		s.abused(c, AbuseConnections)
		return nil, reason.Newf(reason.Overloaded, "accept tunnel", c.RemoteAddr().String(), "%d connections of this address", src.conns)
	}
	src.conns++
	return src.share, nil
}

// depart takes arrive back.
func (s *Server) depart(c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	addr := remoteAddr(c).Addr()
	if src := s.sources[addr]; src != nil {
		src.conns--
		if src.over() {
			delete(s.sources, addr)
		}
	}
}

// settings are those of a new connection: its window is reserved whatever there is
// room for, so that a source which has used up its share gets the smallest.
func (s *Server) settings(share *hbone.Budget) Settings {
	set := s.cfg.Settings
	if share.Exhausted() {
		set.ConnWindow = defaultWindow
	}
	return set
}

// over reports whether nothing is left of a source. What its peers sent may wait for
// an application longer than the connection lasts: a new share for who comes back
// would be one share more each time.
func (src *source) over() bool {
	used, _ := src.share.Used()
	return src.conns == 0 && used == 0
}

// forgetSources drops those of which nothing is left. s.mu is held.
func (s *Server) forgetSources() {
	for addr, src := range s.sources {
		if src.over() {
			delete(s.sources, addr)
		}
	}
}

// serverSide is what a server's connection has and a client's has not.
type serverSide struct {
	ctx        context.Context
	handler    hbone.Handler
	incoming   hbone.Incoming // what all CONNECTs of the connection share
	maxStreams int
	handlers   int // running; guarded by conn.mu
}

func (s *Server) newSide(tc *tlsconn.Conn) serverSide {
	certs := tc.ConnectionState().PeerCertificates
	return serverSide{
		ctx: s.ctx, handler: s.cfg.Handler, maxStreams: s.cfg.MaxStreams,
		incoming: hbone.Incoming{Peer: identity(certs), PeerCerts: certs, Local: tc.LocalAddr(), Remote: tc.RemoteAddr()},
	}
}

// identity returns the first URI SAN of the leaf that is an identity.
func identity(certs []*x509.Certificate) mesh.Identity {
	if len(certs) == 0 {
		return mesh.Identity{}
	}
	for _, uri := range certs[0].URIs {
		if id, err := mesh.ParseIdentity(uri.String()); err == nil {
			return id
		}
	}
	return mesh.Identity{}
}

// handshake does the TLS handshake of an accepted connection.
func (s *Server) handshake(c net.Conn) (*tlsconn.Conn, error) {
	if !s.begin(c) {
		return nil, reason.New(reason.Draining, "accept tunnel", c.RemoteAddr().String(), nil)
	}
	ctx, cancel := context.WithTimeout(s.ctx, s.cfg.HandshakeTimeout)
	defer cancel()
	from := remoteAddr(c).Addr()
	evicted := func() { cancel(); _ = c.Close(); s.abused(c, AbuseHandshakes) }
	visit := s.cfg.Gate.enter(ctx, from, evicted)
	if visit == nil {
		s.end(c)
		s.abused(c, AbuseHandshakes)
		return nil, reason.Newf(reason.Overloaded, "accept tunnel", c.RemoteAddr().String(), "too many handshakes at once")
	}
	defer s.cfg.Gate.leave(from, visit)
	cfg, err := s.cfg.TLS(ctx)
	if err != nil {
		s.end(c)
		return nil, err
	}
	tc, err := tlsconn.ServerOver(ctx, c, cfg)
	if err != nil {
		s.end(c)
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			s.abused(c, AbuseSlow)
		}
		return nil, tlsError("accept tunnel", c.RemoteAddr().String(), err)
	}
	return tc, nil
}

// tlsError gives a handshake's failure its reason: the one that the TLS
// configuration's verification found, else reason.TLSFailure.
func tlsError(op, subject string, err error) error {
	if r := reason.Of(err); r != reason.Internal {
		return reason.New(r, op, subject, err)
	}
	return reason.New(reason.TLSFailure, op, subject, err)
}

func (s *Server) begin(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.greeting[c] = struct{}{}
	return true
}

func (s *Server) end(c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.greeting, c)
	s.notify()
}

// notify wakes those who wait for connections to go. s.mu is held.
func (s *Server) notify() {
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *Server) add(hc *conn, c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.greeting, c)
	if s.closed {
		return false
	}
	s.conns[hc] = struct{}{}
	if s.draining {
		hc.drain()
	}
	return true
}

func (s *Server) remove(hc *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, hc)
	s.notify()
}

// checkGreeted ends a connection whose client has not sent its preface in time.
func (c *conn) checkGreeted() {
	c.mu.Lock()
	late := !c.peerSet
	c.mu.Unlock()
	if late {
		c.kill(reason.New(reason.TunnelHandshake, "accept tunnel", c.t.RemoteAddr().String(), calmErrorf(AbuseSlow, "no SETTINGS in time")))
	}
}

// startDrain tells every connection to finish its streams and take no more.
func (s *Server) startDrain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.draining = true
	for c := range s.conns {
		c.drain()
	}
}

// Retire tells every connection that there is to finish its streams and take no
// more, and goes on accepting others.
func (s *Server) Retire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.drain()
	}
}

// Drain tells every connection to go away, lets open streams finish and returns
// when the last connection has closed or ctx has ended, then with ctx's cause.
func (s *Server) Drain(ctx context.Context) error {
	s.startDrain()
	for {
		s.mu.Lock()
		left, changed := len(s.conns)+len(s.greeting), s.changed
		s.mu.Unlock()
		if left == 0 {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Close ends everything at once: handlers' contexts, streams and connections.
// Serve must be ended by its context or its listener. Close may be called again.
func (s *Server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.cancel()
	for c := range s.greeting {
		_ = c.Close()
	}
	for c := range s.conns {
		go c.hangUp(reason.New(reason.TunnelClosed, "close tunnel", c.t.RemoteAddr().String(), nil))
	}
	return nil
}

// hangUp resets every stream, says so, and ends the connection because of err.
func (c *conn) hangUp(err error) {
	c.mu.Lock()
	for id := range c.streams {
		c.ctl = appendReset(c.ctl, id, 0x8) // CANCEL: the peer takes it for an end
	}
	c.ctl = appendGoAway(c.ctl, c.lastID, 0, "")
	c.mu.Unlock()
	c.fail(err)
	time.AfterFunc(linger, c.cut)
}
