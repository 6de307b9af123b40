package proxy

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/pkg/handover"
	"github.com/culvert-mesh/culvert/pkg/netns"
)

// A pod's listening sockets outlive us: each lies in a store too, under a name,
// and whoever comes after us takes the very same socket with what is queued in it
// (pkg/handover).
//
//	Listen ── Take ──▶ held ── adopt ──▶ listener      as before, or
//	              none fits ── listen ─▶ listener ── Put ──▶ the store

// sockets are those of a pod during its Listen: what the store had, and what it is
// to have.
type sockets struct {
	held map[string]*os.File
	kept map[string]syscall.Conn
}

// key names the pod's sockets in the store.
func (p *Pod) key() handover.Key { return handover.Key{Pod: p.uid, Namespace: p.ns.ID().String()} }

// stored reports whether the pod's sockets are worth keeping. Those of ztunnel
// itself, a pod without UID, lead to its own metrics, which no application waits for.
func (p *Pod) stored() bool { return p.uid != "" && len(p.node.Store) > 0 }

// takeSockets asks the store for the pod's sockets.
func (p *Pod) takeSockets() {
	p.socks = sockets{kept: map[string]syscall.Conn{}}
	if p.stored() {
		p.socks.held = p.node.Store.Take(p.key())
	}
}

// putBack closes what was taken and has not been adopted.
func (s *sockets) putBack() {
	for _, f := range s.held {
		f.Close()
	}
	s.held = nil
}

// Deposit gives the pod's sockets to the store: after Listen, and again to a store
// that has been started anew.
func (p *Pod) Deposit() {
	if p.stored() {
		p.node.Store.Put(p.key(), p.socks.kept)
	}
}

// take returns the file under a name, nil if the store had none. It is the
// caller's.
func (s *sockets) take(name string) *os.File {
	f := s.held[name]
	delete(s.held, name)
	return f
}

// adoptTCP returns the listening socket that the store has under a name, if it is
// what we would have opened at the address; else nil. Whatever is returned or
// opened in its place must be handed to keep.
func (p *Pod) adoptTCP(name string, at netip.AddrPort) *net.TCPListener {
	f := p.socks.take(name)
	if f == nil {
		return nil
	}
	defer f.Close()
	err := p.fits(f, at, unix.SOCK_STREAM)
	var l net.Listener
	if err == nil {
		l, err = net.FileListener(f)
	}
	if err != nil {
		p.node.Log.Warn("socket of the predecessor not used", "pod", p.info, "socket", name, "error", err)
		return nil
	}
	return l.(*net.TCPListener)
}

// adoptUDP is adoptTCP for a socket that takes datagrams.
func (p *Pod) adoptUDP(name string, at netip.AddrPort) *net.UDPConn {
	f := p.socks.take(name)
	if f == nil {
		return nil
	}
	defer f.Close()
	err := p.fits(f, at, unix.SOCK_DGRAM)
	var c net.PacketConn
	if err == nil {
		c, err = net.FilePacketConn(f)
	}
	if err != nil {
		p.node.Log.Warn("socket of the predecessor not used", "pod", p.info, "socket", name, "error", err)
		return nil
	}
	return c.(*net.UDPConn)
}

// keep has a socket deposited under a name at the end of Listen.
func (p *Pod) keep(name string, s syscall.Conn) { p.socks.kept[name] = s }

// fits makes sure that a socket is like the one that we would open: bound to the
// address, listening, with our mark and with the transparency that we need.
func (p *Pod) fits(f *os.File, at netip.AddrPort, typ int) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	if err := raw.Control(func(fd uintptr) { ferr = p.check(int(fd), at, typ) }); err != nil {
		return err
	}
	return ferr
}

func (p *Pod) check(fd int, at netip.AddrPort, typ int) error {
	bound, err := unix.Getsockname(fd)
	if err != nil {
		return os.NewSyscallError("getsockname", err)
	}
	if got := netns.AddrPort(bound); got != at && !(withoutIPv6(at) && got == netip.AddrPortFrom(netip.IPv4Unspecified(), at.Port())) {
		return fmt.Errorf("bound to %s, want %s", got, at)
	}
	wants := []struct {
		name  string
		level int
		opt   int
		want  int
	}{
		{"SO_TYPE", unix.SOL_SOCKET, unix.SO_TYPE, typ},
		{"SO_MARK", unix.SOL_SOCKET, unix.SO_MARK, int(p.node.Settings.Mark)},
		{"SO_ACCEPTCONN", unix.SOL_SOCKET, unix.SO_ACCEPTCONN, 1},
	}
	if typ != unix.SOCK_STREAM {
		wants = wants[:2]
	}
	for _, w := range wants {
		if got, err := unix.GetsockoptInt(fd, w.level, w.opt); err != nil || got != w.want {
			return errors.Join(fmt.Errorf("%s is %d, want %d", w.name, got, w.want), os.NewSyscallError("getsockopt", err))
		}
	}
	if typ == unix.SOCK_STREAM && p.origSrc {
		return transparent(fd, at)
	}
	return nil
}

// withoutIPv6 reports whether the kernel has no IPv6, so that a listener on all
// addresses of both families is one of IPv4.
func withoutIPv6(at netip.AddrPort) bool {
	if at.Addr() != netip.IPv6Unspecified() {
		return false
	}
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		unix.Close(fd)
	}
	return errors.Is(err, unix.EAFNOSUPPORT)
}

// transparent makes a listener answer from addresses that are not local, as those
// do that are opened with netns.ListenOptions.Transparent.
func transparent(fd int, at netip.AddrPort) error {
	level, opt := unix.SOL_IP, unix.IP_TRANSPARENT
	if at.Addr().Is6() {
		level, opt = unix.SOL_IPV6, unix.IPV6_TRANSPARENT
	}
	if on, err := unix.GetsockoptInt(fd, level, opt); err == nil && on == 1 {
		return nil
	}
	return os.NewSyscallError("setsockopt IP_TRANSPARENT", unix.SetsockoptInt(fd, level, opt, 1))
}
