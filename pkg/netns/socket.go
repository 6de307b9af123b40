package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/pkg/rawio"
)

// keepAlive is what every ztunnel socket uses: a dead peer is noticed after
// 180 s + 9 × 180 s of silence.
func keepAlive() net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: true, Idle: 180 * time.Second, Interval: 180 * time.Second, Count: 9}
}

// ListenOptions are the socket options of Listen and ListenPacket.
type ListenOptions struct {
	ReusePort   bool   // SO_REUSEPORT: a successor listens before the old process closes
	Mark        uint32 // SO_MARK of the socket, and of the connections it accepts
	Transparent bool   // IP_TRANSPARENT: may answer from addresses that are not local
	V6Only      bool   // an IPv6 wildcard takes IPv6 only; otherwise it takes both
	Backlog     int    // length of the accept queue; 0 = 4096, capped by net.core.somaxconn
}

// DialOptions are the socket options of Dial.
type DialOptions struct {
	Mark uint32 // SO_MARK
	// Source, when valid, is the address that the connection comes from. It need
	// not be local: IP_TRANSPARENT and IP_BIND_ADDRESS_NO_PORT are set, so a port
	// is chosen per (source, destination) and not per source.
	Source netip.Addr
	// KeepAlive replaces 180 s / 180 s / 9 probes when its Enable is set.
	KeepAlive net.KeepAliveConfig
}

// Listen listens for TCP on addr inside the namespace. The IPv6 wildcard takes
// both families, and becomes the IPv4 one where the kernel has no IPv6.
// Connections it accepts have TCP_NODELAY set; see Tune for their keepalive.
func (n *NS) Listen(ctx context.Context, addr netip.AddrPort, opt ListenOptions) (*net.TCPListener, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("listen %s: %w", addr, err)
	}
	fd, err := n.bound(addr, unix.SOCK_STREAM, opt)
	if err != nil {
		return nil, fmt.Errorf("listen tcp %s: %w", addr, err)
	}
	backlog := opt.Backlog
	if backlog <= 0 {
		backlog = 4096
	}
	if err := unix.Listen(fd, backlog); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("listen tcp %s: %w", addr, os.NewSyscallError("listen", err))
	}
	f := os.NewFile(uintptr(fd), "tcp")
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("listen tcp %s: %w", addr, err)
	}
	return l.(*net.TCPListener), nil
}

// ListenShared listens in the process's own namespace on a port that a successor
// may open while we still have it. It has the signature of admin.Config.Listen:
// network is "tcp" and addr is an address and a port.
func ListenShared(ctx context.Context, network, addr string) (net.Listener, error) {
	ap, err := netip.ParseAddrPort(addr)
	if err != nil || network != "tcp" {
		return nil, fmt.Errorf("listen %s %s: want tcp on an address", network, addr)
	}
	var own *NS
	l, err := own.Listen(ctx, ap, ListenOptions{ReusePort: true})
	if err != nil && ap.Addr() == netip.IPv6Unspecified() && errors.Is(err, unix.EADDRNOTAVAIL) { // IPv6 is switched off
		l, err = own.Listen(ctx, netip.AddrPortFrom(netip.IPv4Unspecified(), ap.Port()), ListenOptions{ReusePort: true})
	}
	if err != nil {
		return nil, err
	}
	return l, nil
}

// ListenPacket opens a UDP socket on addr inside the namespace.
func (n *NS) ListenPacket(ctx context.Context, addr netip.AddrPort, opt ListenOptions) (*net.UDPConn, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("listen %s: %w", addr, err)
	}
	fd, err := n.bound(addr, unix.SOCK_DGRAM, opt)
	if err != nil {
		return nil, fmt.Errorf("listen udp %s: %w", addr, err)
	}
	f := os.NewFile(uintptr(fd), "udp")
	defer f.Close()
	c, err := net.FilePacketConn(f)
	if err != nil {
		return nil, fmt.Errorf("listen udp %s: %w", addr, err)
	}
	return c.(*net.UDPConn), nil
}

// Dial connects to addr from inside the namespace; ctx bounds the handshake. The
// error of a failed handshake is in the chain: errors.Is(err, ECONNREFUSED).
func (n *NS) Dial(ctx context.Context, addr netip.AddrPort, opt DialOptions) (*net.TCPConn, error) {
	addr = unmap(addr)
	c, err := n.dial(ctx, addr, opt)
	if err != nil {
		return nil, fmt.Errorf("dial tcp %s: %w", addr, err)
	}
	return c, nil
}

func (n *NS) dial(ctx context.Context, addr netip.AddrPort, opt DialOptions) (*net.TCPConn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	fd, err := n.socket(addr.Addr(), unix.SOCK_STREAM)
	if err != nil {
		return nil, err
	}
	if err := prepare(fd, addr.Addr(), opt); err != nil {
		unix.Close(fd)
		return nil, err
	}
	if err := connect(fd, addr); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		unix.Close(fd)
		return nil, os.NewSyscallError("connect", err)
	}
	f := os.NewFile(uintptr(fd), "tcp")
	defer f.Close()
	if err := awaitConnected(ctx, f, addr); err != nil {
		return nil, err
	}
	return connOf(f, opt)
}

// prepare sets the options of a socket that is about to connect to the address to.
func prepare(fd int, to netip.Addr, opt DialOptions) error {
	if err := setMark(fd, opt.Mark); err != nil {
		return err
	}
	if !opt.Source.IsValid() {
		return nil
	}
	src := opt.Source.Unmap()
	if src.Is4() != to.Is4() {
		return fmt.Errorf("source %s is of another family", src)
	}
	opts := []sockopt{
		{unix.SOL_IP, unix.IP_TRANSPARENT, "IP_TRANSPARENT"},
		{unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, "IP_BIND_ADDRESS_NO_PORT"},
	}
	if src.Is6() {
		opts[0] = sockopt{unix.SOL_IPV6, unix.IPV6_TRANSPARENT, "IPV6_TRANSPARENT"}
	}
	if err := enable(fd, opts...); err != nil {
		return err
	}
	return os.NewSyscallError("bind", unix.Bind(fd, sockaddr(netip.AddrPortFrom(src, 0))))
}

// awaitConnected waits on the poller until the handshake is over.
func awaitConnected(ctx context.Context, f *os.File, to netip.AddrPort) error {
	stop := context.AfterFunc(ctx, func() { f.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	err = raw.Write(func(fd uintptr) bool {
		done, err := handshake(int(fd), to)
		result = err
		return done
	})
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
	}
	return result
}

// handshake reports whether the handshake is over, and its error. A second
// connect(2) tells both in one call.
func handshake(fd int, to netip.AddrPort) (done bool, err error) {
	err = connect(fd, to)
	switch err {
	case nil, unix.EISCONN:
		return true, nil
	case unix.EALREADY, unix.EINPROGRESS, unix.EINTR:
		return false, nil
	}
	return true, os.NewSyscallError("connect", err)
}

func connect(fd int, to netip.AddrPort) error { return rawio.Connect(fd, to, zone(to.Addr())) }

func connOf(f *os.File, opt DialOptions) (*net.TCPConn, error) {
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	conn := c.(*net.TCPConn)
	ka := keepAlive()
	if opt.KeepAlive.Enable {
		ka = opt.KeepAlive
	}
	if err := conn.SetKeepAliveConfig(ka); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// Tune gives an accepted connection the options that Dial gives: TCP_NODELAY and
// keepalive after 180 s, every 180 s, 9 times.
func Tune(c *net.TCPConn) error {
	if err := c.SetNoDelay(true); err != nil {
		return err
	}
	return c.SetKeepAliveConfig(keepAlive())
}

// socket makes a non-blocking socket of the address's family in the namespace.
// The protocol is TCP by number, never Multipath TCP.
func (n *NS) socket(a netip.Addr, typ int) (fd int, err error) {
	family, proto := unix.AF_INET, unix.IPPROTO_TCP
	if a.Is6() {
		family = unix.AF_INET6
	}
	if typ == unix.SOCK_DGRAM {
		proto = unix.IPPROTO_UDP
	}
	err = n.Do(func() error {
		fd, err = unix.Socket(family, typ|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, proto)
		return os.NewSyscallError("socket", err)
	})
	return fd, err
}

// bound returns a socket that is bound to addr.
func (n *NS) bound(addr netip.AddrPort, typ int, opt ListenOptions) (int, error) {
	addr = unmap(addr)
	fd, err := n.socket(addr.Addr(), typ)
	if errors.Is(err, unix.EAFNOSUPPORT) && addr.Addr() == netip.IPv6Unspecified() {
		addr = netip.AddrPortFrom(netip.IPv4Unspecified(), addr.Port())
		fd, err = n.socket(addr.Addr(), typ)
	}
	if err != nil {
		return -1, err
	}
	if err := bind(fd, addr, typ, opt); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func bind(fd int, addr netip.AddrPort, typ int, opt ListenOptions) error {
	if err := setMark(fd, opt.Mark); err != nil {
		return err
	}
	var opts []sockopt
	if typ == unix.SOCK_STREAM {
		opts = append(opts, sockopt{unix.SOL_SOCKET, unix.SO_REUSEADDR, "SO_REUSEADDR"})
	}
	if opt.ReusePort {
		opts = append(opts, sockopt{unix.SOL_SOCKET, unix.SO_REUSEPORT, "SO_REUSEPORT"})
	}
	if opt.Transparent && addr.Addr().Is4() {
		opts = append(opts, sockopt{unix.SOL_IP, unix.IP_TRANSPARENT, "IP_TRANSPARENT"})
	} else if opt.Transparent {
		opts = append(opts, sockopt{unix.SOL_IPV6, unix.IPV6_TRANSPARENT, "IPV6_TRANSPARENT"})
	}
	if err := enable(fd, opts...); err != nil {
		return err
	}
	if addr.Addr().Is6() {
		only := 0
		if opt.V6Only || !addr.Addr().IsUnspecified() {
			only = 1
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY, only); err != nil {
			return os.NewSyscallError("setsockopt IPV6_V6ONLY", err)
		}
	}
	return os.NewSyscallError("bind", unix.Bind(fd, sockaddr(addr)))
}

type sockopt struct {
	level, name int
	text        string
}

func enable(fd int, opts ...sockopt) error {
	for _, o := range opts {
		if err := rawio.Set(fd, o.level, o.name, 1); err != nil {
			return os.NewSyscallError("setsockopt "+o.text, err)
		}
	}
	return nil
}

func setMark(fd int, mark uint32) error {
	if mark == 0 {
		return nil
	}
	err := rawio.Set(fd, unix.SOL_SOCKET, unix.SO_MARK, int(mark))
	return os.NewSyscallError("setsockopt SO_MARK", err)
}
