package netns

import (
	"fmt"
	"net"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// soOriginalDst is SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST, the same number at
// two levels (linux/netfilter_ipv4.h, linux/netfilter_ipv6/ip6_tables.h).
const soOriginalDst = 80

// OriginalDst returns the address that the client of an accepted connection
// dialled before a redirect rule brought it here; the connection's local address
// when nothing redirected it. IPv4-mapped addresses come back as IPv4.
func OriginalDst(c *net.TCPConn) (netip.AddrPort, error) {
	local := unmap(c.LocalAddr().(*net.TCPAddr).AddrPort())
	raw, err := c.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("original destination: %w", err)
	}
	dst := local
	err = raw.Control(func(fd uintptr) {
		var got netip.AddrPort
		var ok bool
		if local.Addr().Is4() {
			got, ok = originalDst4(int(fd))
		} else {
			got, ok = originalDst6(int(fd))
		}
		if ok {
			dst = got
		}
	})
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("original destination: %w", err)
	}
	return dst, nil
}

// originalDst4 asks the connection tracker. It answers with a sockaddr_in, which
// fits into the 16 bytes that x/sys reads for an ipv6_mreq.
func originalDst4(fd int) (netip.AddrPort, bool) {
	m, err := unix.GetsockoptIPv6Mreq(fd, unix.SOL_IP, soOriginalDst)
	if err != nil {
		return netip.AddrPort{}, false
	}
	b := m.Multiaddr // family(2) port(2) address(4) zero(8)
	port := uint16(b[2])<<8 | uint16(b[3])
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), port), true
}

// originalDst6 asks for a sockaddr_in6, which x/sys reads as the start of an
// ip6_mtuinfo.
func originalDst6(fd int) (netip.AddrPort, bool) {
	m, err := unix.GetsockoptIPv6MTUInfo(fd, unix.SOL_IPV6, soOriginalDst)
	if err != nil {
		return netip.AddrPort{}, false
	}
	p := (*[2]byte)(unsafe.Pointer(&m.Addr.Port)) // network byte order
	port := uint16(p[0])<<8 | uint16(p[1])
	return netip.AddrPortFrom(netip.AddrFrom16(m.Addr.Addr).Unmap(), port), true
}

func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16(), ZoneId: zone(a.Addr())}
}

// AddrPort returns the address in what a socket call told; the zero one for other
// families.
func AddrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// zone returns the interface index of a scoped address.
func zone(a netip.Addr) uint32 {
	if a.Zone() == "" {
		return 0
	}
	ifi, err := net.InterfaceByName(a.Zone())
	if err != nil {
		return 0
	}
	return uint32(ifi.Index)
}
