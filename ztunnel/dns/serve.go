package dns

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/pkg/netns"
)

const (
	idleTime  = 10 * time.Second // a connection without a query
	writeTime = 5 * time.Second  // a client that does not read its answer
	connQuery = 16               // queries of one connection at once
	seatTime  = 4 * time.Second  // a connection that waits for a place; resolvers give up after 5 s
)

// buffers hold datagrams while they are looked at.
var buffers = sync.Pool{New: func() any { return new([maxMessage]byte) }}

// UDP is a socket that a Server answers on.
type UDP struct {
	conn *net.UDPConn
	raw  interface {
		Read(func(uintptr) bool) error
	}
	local    netip.AddrPort
	stopping atomic.Bool
}

// NewUDP wraps a socket that is bound to one address.
func NewUDP(c *net.UDPConn) (*UDP, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	return &UDP{conn: c, raw: raw, local: addrPort(c.LocalAddr())}, nil
}

// Conn returns the socket, for whoever hands it on.
func (u *UDP) Conn() *net.UDPConn { return u.conn }

// Stop makes ServeUDP return, soon. A successor that has a socket of its own on the
// address gets every later datagram, and those that have arrived here are still
// answered. With shared the successor has this very socket, and gets them too.
func (u *UDP) Stop(shared bool) {
	end := time.Unix(1, 0)
	if !shared {
		u.retire()
		end = time.Now().Add(lingerTime)
	}
	u.stopping.Store(true) // not before: what arrives until then is this socket's
	u.conn.SetReadDeadline(end)
}

// lingerTime is how long a retired socket is read on: the kernel may have picked it
// for a datagram that it has not put there yet, and on a busy machine 20 ms were
// seen to be too short for that.
const lingerTime = 500 * time.Millisecond

// retire takes the socket out of its SO_REUSEPORT group without closing it: to one
// that is connected the kernel gives only datagrams of its peer, which here is a
// port that nobody sends from.
func (u *UDP) retire() {
	raw, err := u.conn.SyscallConn()
	if err != nil {
		return
	}
	var peer unix.Sockaddr = &unix.SockaddrInet4{Port: discard, Addr: [4]byte{127, 0, 0, 1}}
	if u.local.Addr().Is6() {
		peer = &unix.SockaddrInet6{Port: discard, Addr: netip.IPv6Loopback().As16()}
	}
	raw.Control(func(fd uintptr) { unix.Connect(int(fd), peer) })
}

// discard is the port of the discard service.
const discard = 9

// Close closes the socket. It may be called again.
func (u *UDP) Close() { u.conn.Close() }

// ServeUDP answers what arrives until u stops or closes.
func (s *Server) ServeUDP(u *UDP) error {
	for {
		buf, n, client, err := u.receive()
		switch {
		case err == nil:
			s.handle(buf[:n], from{local: u.local, client: client}, func(msg []byte) error {
				_, err := u.conn.WriteToUDPAddrPort(msg, client)
				return err
			}, func() {})
			buffers.Put(buf)
		case errors.Is(err, net.ErrClosed):
			return nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			if u.stopping.Load() {
				return nil
			}
		default:
			if s.life.Err() != nil {
				return nil
			}
			if !s.deaf.Swap(true) {
				s.node.cfg.Log.Warn("cannot receive DNS queries", "pod", s.cfg.Name, "error", err)
			}
			time.Sleep(receivePause)
		}
	}
}

// receivePause keeps a socket that fails from spinning.
const receivePause = 5 * time.Millisecond

// receive waits for a datagram. The buffer is the caller's to give back; while
// nothing has come there is none.
func (u *UDP) receive() (buf *[maxMessage]byte, n int, client netip.AddrPort, err error) {
	var sa unix.Sockaddr
	take := func(fd uintptr) bool {
		buf = buffers.Get().(*[maxMessage]byte)
		n, sa, err = recvfrom(int(fd), buf[:])
		if err == nil {
			return true
		}
		buffers.Put(buf)
		return err != unix.EAGAIN
	}
	if rerr := u.raw.Read(take); rerr != nil {
		return nil, 0, client, rerr
	}
	if err != nil {
		return nil, 0, client, os.NewSyscallError("recvfrom", err)
	}
	return buf, n, netns.AddrPort(sa), nil
}

func recvfrom(fd int, b []byte) (n int, sa unix.Sockaddr, err error) {
	for {
		n, sa, err = unix.Recvfrom(fd, b, unix.MSG_DONTWAIT)
		if err != unix.EINTR {
			return n, sa, err
		}
	}
}

func addrPort(a net.Addr) netip.AddrPort {
	var ap netip.AddrPort
	switch a := a.(type) {
	case *net.UDPAddr:
		ap = a.AddrPort()
	case *net.TCPAddr:
		ap = a.AddrPort()
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// conn is a client's connection over TCP.
type conn struct {
	*net.TCPConn
	from  from
	slots chan struct{} // queries under way
	asked atomic.Bool   // it has had a query

	mu sync.Mutex // one answer at a time
}

// firstTime is how long a connection may take to its first query when no more is
// wanted: its client has just connected, to us and not to a successor.
const firstTime = time.Second

// retire lets the connection end when it is idle.
func (c *conn) retire() {
	if c.asked.Load() {
		c.SetReadDeadline(time.Unix(1, 0))
	} else {
		c.SetReadDeadline(time.Now().Add(firstTime))
	}
}

// ServeConn answers the queries of a connection, which it closes when the client has
// no more or is idle. dialled is where the client wanted to go.
func (s *Server) ServeConn(tcp *net.TCPConn, dialled netip.AddrPort) {
	s.flows.begin()
	defer s.flows.end()
	if !s.seat() {
		s.refuse(refusedConns)
		tcp.SetLinger(0)
		tcp.Close()
		return
	}
	defer s.node.conns.leave()
	defer s.conns.leave()
	c := &conn{TCPConn: tcp, slots: make(chan struct{}, connQuery)}
	c.from = from{local: addrPort(tcp.LocalAddr()), client: addrPort(tcp.RemoteAddr()), tcp: true, dialled: dialled}
	defer c.Close()
	if !s.keep(c) {
		return
	}
	defer s.forget(c)
	s.serveConn(c)
	for range connQuery { // those under way still get their answers
		select {
		case c.slots <- struct{}{}:
		case <-s.life.Done():
			return
		}
	}
}

// seat takes a place of the pod's and one of the node's. What arrives together, as
// after a moment without a ztunnel, waits for the places of those before it.
func (s *Server) seat() bool {
	if !enterBoth(&s.queued, &s.node.queued) {
		return false
	}
	defer s.node.queued.leave()
	defer s.queued.leave()
	ctx, cancel := context.WithTimeout(s.life, s.patience)
	defer cancel()
	if !s.conns.enter(ctx) {
		return false
	}
	if !s.node.conns.enter(ctx) {
		s.conns.leave()
		return false
	}
	return true
}

func (s *Server) serveConn(c *conn) {
	for {
		c.SetReadDeadline(time.Now().Add(idleTime))
		if s.drains.Load() { // looked at afterwards, so that Drain is not undone
			c.retire()
		}
		raw, err := readMessage(c)
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, net.ErrClosed) {
				s.node.cfg.Log.Debug("connection ended", "pod", s.cfg.Name, "error", err)
			}
			return
		}
		c.asked.Store(true)
		select {
		case c.slots <- struct{}{}:
		case <-s.life.Done():
			return
		}
		s.handle(raw, c.from, c.deliver, func() { <-c.slots })
	}
}

func (c *conn) deliver(msg []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.SetWriteDeadline(time.Now().Add(writeTime))
	err := writeMessage(c, msg)
	if err != nil {
		c.Close()
	}
	return err
}

func (s *Server) keep(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open[c] = struct{}{}
	return s.life.Err() == nil
}

func (s *Server) forget(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, c)
}
