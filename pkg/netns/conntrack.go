package netns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Tracker asks the connection tracker of a namespace where redirected datagrams
// were going: SO_ORIGINAL_DST knows TCP only. It needs CAP_NET_ADMIN and a kernel
// with CONFIG_NF_CT_NETLINK.
type Tracker struct {
	mu  sync.Mutex // one request at a time
	fd  int
	seq uint32
	buf []byte
}

// NewTracker opens a Tracker of the namespace. It stays open until Close.
func (n *NS) NewTracker() (*Tracker, error) {
	t := &Tracker{fd: -1}
	err := n.Do(func() (err error) {
		t.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
		return os.NewSyscallError("socket", err)
	})
	if err != nil {
		return nil, fmt.Errorf("connection tracker: %w", err)
	}
	if err := unix.Bind(t.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(t.fd)
		return nil, fmt.Errorf("connection tracker: %w", os.NewSyscallError("bind", err))
	}
	return t, nil
}

// Close closes the Tracker. It may be called again.
func (t *Tracker) Close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.fd >= 0 {
		unix.Close(t.fd)
		t.fd = -1
	}
}

// Numbers of nfnetlink_conntrack.h.
const (
	ctGet         = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1 // IPCTNL_MSG_CT_GET
	ctNew         = unix.NFNL_SUBSYS_CTNETLINK << 8   // IPCTNL_MSG_CT_NEW
	ctaTupleOrig  = 1
	ctaTupleReply = 2
	ctaTupleIP    = 1
	ctaTupleProto = 2
	ctaV4Src      = 1
	ctaV4Dst      = 2
	ctaV6Src      = 3
	ctaV6Dst      = 4
	ctaProtoNum   = 1
	ctaProtoSrc   = 2
	ctaProtoDst   = 3
	nlaNested     = 0x8000
)

// OriginalUDP returns where a datagram was going that arrived at the address local
// from client; local itself when nothing redirected it. The error of a flow that
// the tracker does not know is ENOENT.
func (t *Tracker) OriginalUDP(local, client netip.AddrPort) (netip.AddrPort, error) {
	local, client = unmap(local), unmap(client)
	t.mu.Lock()
	defer t.mu.Unlock()
	dst, err := t.askLocked(local, client)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("original destination of %s: %w", client, err)
	}
	return dst, nil
}

func (t *Tracker) askLocked(local, client netip.AddrPort) (netip.AddrPort, error) {
	if t.fd < 0 {
		return netip.AddrPort{}, os.ErrClosed
	}
	t.seq++
	// The answer travels from local to client, which is how the flow is found.
	t.buf = appendTupleRequest(t.buf[:0], t.seq, local, client)
	if err := unix.Sendto(t.fd, t.buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return netip.AddrPort{}, os.NewSyscallError("sendto", err)
	}
	var in [2048]byte
	for { // the kernel has answered already; what is older belongs to a request that failed
		n, _, err := unix.Recvfrom(t.fd, in[:], 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return netip.AddrPort{}, os.NewSyscallError("recvfrom", err)
		}
		if dst, mine, err := parseTuple(in[:n], t.seq); mine {
			return dst, err
		}
	}
}

func appendTupleRequest(b []byte, seq uint32, src, dst netip.AddrPort) []byte {
	ne := binary.NativeEndian
	family, ipSrc, ipDst := byte(unix.AF_INET), uint16(ctaV4Src), uint16(ctaV4Dst)
	if src.Addr().Is6() {
		family, ipSrc, ipDst = unix.AF_INET6, ctaV6Src, ctaV6Dst
	}
	b = append(b, make([]byte, unix.SizeofNlMsghdr)...)
	b = append(b, family, 0, 0, 0) // nfgenmsg
	ip := attribute(nil, ipSrc, src.Addr().AsSlice())
	ip = attribute(ip, ipDst, dst.Addr().AsSlice())
	proto := attribute(nil, ctaProtoNum, []byte{unix.IPPROTO_UDP})
	proto = attribute(proto, ctaProtoSrc, binary.BigEndian.AppendUint16(nil, src.Port()))
	proto = attribute(proto, ctaProtoDst, binary.BigEndian.AppendUint16(nil, dst.Port()))
	tuple := attribute(nil, ctaTupleIP|nlaNested, ip)
	tuple = attribute(tuple, ctaTupleProto|nlaNested, proto)
	b = attribute(b, ctaTupleReply|nlaNested, tuple)
	ne.PutUint32(b, uint32(len(b)))
	ne.PutUint16(b[4:], ctGet)
	ne.PutUint16(b[6:], unix.NLM_F_REQUEST)
	ne.PutUint32(b[8:], seq)
	return b
}

// attribute appends a netlink attribute, padded to four bytes.
func attribute(b []byte, typ uint16, data []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(4+len(data)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, data...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// parseTuple reads the answer to request seq; mine is false for any other message.
func parseTuple(b []byte, seq uint32) (dst netip.AddrPort, mine bool, err error) {
	ne := binary.NativeEndian
	if len(b) < unix.SizeofNlMsghdr || ne.Uint32(b[8:]) != seq {
		return dst, false, nil
	}
	switch typ := ne.Uint16(b[4:]); typ {
	case unix.NLMSG_ERROR:
		if len(b) < unix.SizeofNlMsghdr+4 {
			return dst, true, unix.EBADMSG
		}
		return dst, true, unix.Errno(-int32(ne.Uint32(b[unix.SizeofNlMsghdr:])))
	case ctNew:
	default:
		return dst, false, nil
	}
	if len(b) < unix.SizeofNlMsghdr+4 {
		return dst, true, unix.EBADMSG
	}
	tuple := find(b[unix.SizeofNlMsghdr+4:], ctaTupleOrig)
	ip := find(tuple, ctaTupleIP)
	raw := find(ip, ctaV4Dst)
	if raw == nil {
		raw = find(ip, ctaV6Dst)
	}
	addr, ok := netip.AddrFromSlice(raw)
	port := find(find(tuple, ctaTupleProto), ctaProtoDst)
	if !ok || len(port) != 2 {
		return dst, true, unix.EBADMSG
	}
	return netip.AddrPortFrom(addr.Unmap(), binary.BigEndian.Uint16(port)), true, nil
}

// find returns the data of the first attribute of a type, or nil.
func find(b []byte, typ uint16) []byte {
	for len(b) >= 4 {
		n := int(binary.NativeEndian.Uint16(b))
		if n < 4 || n > len(b) {
			return nil
		}
		if binary.NativeEndian.Uint16(b[2:])&^nlaNested == typ {
			return b[4:n]
		}
		b = b[min((n+3)&^3, len(b)):]
	}
	return nil
}
