package hbone

import (
	"net"
	"net/netip"
	"time"
)

// NetConn makes a stream a net.Conn, so that TLS can be spoken inside it. It owns
// the stream.
func NetConn(s Stream) net.Conn { return netConn{s} }

type netConn struct{ Stream }

func (c netConn) LocalAddr() net.Addr  { return tcpAddr(c.Stream.LocalAddr()) }
func (c netConn) RemoteAddr() net.Addr { return tcpAddr(c.Stream.RemoteAddr()) }

func tcpAddr(a netip.AddrPort) net.Addr { return net.TCPAddrFromAddrPort(a) }

func (c netConn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}
