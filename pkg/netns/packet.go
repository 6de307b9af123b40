package netns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// DialPacket opens a UDP socket inside the namespace that talks to addr alone: the
// kernel drops what comes from anywhere else, and reports a refusal as
// ECONNREFUSED. Its port is one that the kernel picks at random. Of opt only Mark
// is used.
func (n *NS) DialPacket(ctx context.Context, addr netip.AddrPort, opt DialOptions) (*net.UDPConn, error) {
	addr = unmap(addr)
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("dial udp %s: %w", addr, err)
	}
	fd, err := n.socket(addr.Addr(), unix.SOCK_DGRAM)
	if err != nil {
		return nil, fmt.Errorf("dial udp %s: %w", addr, err)
	}
	if err = setMark(fd, opt.Mark); err == nil {
		err = os.NewSyscallError("connect", unix.Connect(fd, sockaddr(addr)))
	}
	f := os.NewFile(uintptr(fd), "udp")
	defer f.Close()
	if err != nil {
		return nil, fmt.Errorf("dial udp %s: %w", addr, err)
	}
	c, err := net.FilePacketConn(f)
	if err != nil {
		return nil, fmt.Errorf("dial udp %s: %w", addr, err)
	}
	return c.(*net.UDPConn), nil
}
