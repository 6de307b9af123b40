// Package wiretap looks at the packets that cross a link, as somebody on the wire
// between two nodes would: what can be read there, and is everything that should
// be encrypted a TLS 1.3 stream from its first byte to its last?
//
//	AF_PACKET socket in the switch's namespace ─▶ frames ─▶ TCP streams by direction
//	                                                          │
//	                    Contains(marker)? ◀───────────────────┤
//	                    TLS(15008): versions, records, gaps ◀─┘
//
// A Tap is run by one goroutine; its Report may be asked for from another at any
// time.
package wiretap

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/pkg/netns"
)

// maxStream is how many bytes of one direction of a connection are kept.
const maxStream = 4 << 20

// maxOthers is how many frames without TCP are kept.
const maxOthers = 10_000

// Tap captures the packets of one link.
type Tap struct {
	fd *os.File

	mu      sync.Mutex
	packets int
	bytes   int
	flows   map[flow]*stream
	others  [][]byte // frames that belong to no TCP stream
}

type flow struct{ src, dst netip.AddrPort }

// stream is one direction of a TCP connection.
type stream struct {
	began bool // its SYN was seen
	next  uint32
	data  []byte
	ahead map[uint32][]byte // segments that came too early
}

// Open opens a tap on a link of the namespace. It sees every packet from then on.
func Open(ns *netns.NS, link string) (*Tap, error) {
	var fd int
	err := ns.Do(func() error {
		ifi, err := net.InterfaceByName(link)
		if err != nil {
			return err
		}
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(htons(unix.ETH_P_ALL))); err != nil {
			return os.NewSyscallError("socket", err)
		}
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)
		return os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: ifi.Index}))
	})
	if err != nil {
		return nil, fmt.Errorf("capture on %s: %w", link, err)
	}
	return &Tap{fd: os.NewFile(uintptr(fd), "af_packet"), flows: map[flow]*stream{}}, nil
}

func htons(n uint16) uint16 { return n<<8 | n>>8 }

// Run captures until ctx ends: all that has crossed the link by then.
func (t *Tap) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = t.fd.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	defer t.fd.Close()
	buf := make([]byte, 1<<17)
	for {
		n, err := t.fd.Read(buf)
		switch {
		case err == nil:
			t.packet(bytes.Clone(buf[:n]))
		case ctx.Err() != nil:
			return t.rest(buf)
		case errors.Is(err, unix.ENETDOWN):
		default:
			return fmt.Errorf("capture: %w", err)
		}
	}
}

// maxRest bounds what is read after the end, where packets come faster than they are
// read.
const maxRest = 200_000

// rest takes in what has come and was not read yet.
func (t *Tap) rest(buf []byte) error {
	raw, err := t.fd.SyscallConn()
	if err != nil {
		return fmt.Errorf("capture: %w", err)
	}
	return raw.Control(func(fd uintptr) {
		for range maxRest {
			n, _, err := unix.Recvfrom(int(fd), buf, unix.MSG_DONTWAIT)
			if err != nil { // all is read
				return
			}
			t.packet(bytes.Clone(buf[:n]))
		}
	})
}

// packet files one frame.
func (t *Tap) packet(frame []byte) {
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.DecodeOptions{Lazy: true, NoCopy: true})
	t.mu.Lock()
	defer t.mu.Unlock()
	t.packets++
	t.bytes += len(frame)
	network := p.NetworkLayer()
	tcp, ok := p.Layer(layers.LayerTypeTCP).(*layers.TCP)
	if network == nil || !ok {
		if len(t.others) < maxOthers {
			t.others = append(t.others, frame)
		}
		return
	}
	src, _ := netip.AddrFromSlice(network.NetworkFlow().Src().Raw())
	dst, _ := netip.AddrFromSlice(network.NetworkFlow().Dst().Raw())
	t.segment(flow{netip.AddrPortFrom(src, uint16(tcp.SrcPort)), netip.AddrPortFrom(dst, uint16(tcp.DstPort))}, tcp)
}

func (t *Tap) segment(f flow, tcp *layers.TCP) {
	s := t.flows[f]
	if s == nil || tcp.SYN {
		s = &stream{ahead: map[uint32][]byte{}, next: tcp.Seq}
		t.flows[f] = s
	}
	if tcp.SYN {
		s.began, s.next = true, tcp.Seq+1
	}
	if len(tcp.Payload) > 0 {
		s.add(tcp.Seq, tcp.Payload)
	}
}

// add puts a segment where it belongs. What is more than is kept, or out of order
// beyond repair, is not looked at.
func (s *stream) add(seq uint32, payload []byte) {
	if len(s.data) > maxStream || len(s.ahead) > 4096 {
		return
	}
	s.ahead[seq] = payload
	for moved := true; moved; {
		moved = false
		for at, p := range s.ahead {
			behind := int32(s.next - at)
			if behind < 0 {
				continue
			}
			delete(s.ahead, at)
			if int(behind) < len(p) {
				s.data = append(s.data, p[behind:]...)
				s.next += uint32(len(p) - int(behind))
			}
			moved = true
		}
	}
}

// Seen is how much was captured.
type Seen struct {
	Packets int
	Bytes   int
}

// Seen returns how much was captured so far.
func (t *Tap) Seen() Seen {
	t.mu.Lock()
	defer t.mu.Unlock()
	return Seen{t.packets, t.bytes}
}

// Contains reports how many TCP streams and other packets carry the marker in
// the clear.
func (t *Tap) Contains(marker string) (n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.flows {
		found := bytes.Contains(s.data, []byte(marker))
		for _, p := range s.ahead {
			found = found || bytes.Contains(p, []byte(marker))
		}
		if found {
			n++
		}
	}
	for _, frame := range t.others {
		if bytes.Contains(frame, []byte(marker)) {
			n++
		}
	}
	return n
}

// TLSReport says what the connections to a port turned out to be.
type TLSReport struct {
	Connections int // whose beginning was seen
	TLS13       int // of these, that are TLS 1.3 records from the first byte on
	Records     int
	Bytes       int
	Others      []string // what the rest is
}

// TLS looks at the connections to a port, in both directions.
func (t *Tap) TLS(port uint16) (r TLSReport) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for f, s := range t.flows {
		if f.dst.Port() != port || !s.began {
			continue
		}
		back := t.flows[flow{f.dst, f.src}]
		if len(s.data) == 0 && (back == nil || len(back.data) == 0) {
			continue // opened and closed
		}
		r.Connections++
		if err := r.check(s, back); err != nil {
			r.Others = append(r.Others, fmt.Sprintf("%s → %s: %v", f.src, f.dst, err))
			continue
		}
		r.TLS13++
	}
	return r
}

func (r *TLSReport) check(client, server *stream) error {
	if server == nil {
		return errors.New("no answer was seen")
	}
	for _, s := range []*stream{client, server} {
		n, err := records(s.data)
		if err != nil {
			return err
		}
		r.Records += n
		r.Bytes += len(s.data)
	}
	if len(server.data) == 0 {
		return errors.New("the server said nothing")
	}
	v, err := helloVersion(server.data)
	if err == nil && v != tls13 {
		err = fmt.Errorf("the server chose TLS version %#04x", v)
	}
	return err
}

const tls13 = 0x0304

// records counts the TLS records of a stream (RFC 8446, section 5.1). The last
// one may still be on its way.
func records(b []byte) (n int, err error) {
	for len(b) >= 5 {
		typ, version, length := b[0], binary.BigEndian.Uint16(b[1:]), int(binary.BigEndian.Uint16(b[3:]))
		if typ < 20 || typ > 23 || version>>8 != 3 || length > 1<<14+256 {
			return n, fmt.Errorf("record %d is not TLS: % x", n, b[:5])
		}
		n++
		if len(b) < 5+length {
			return n, nil
		}
		b = b[5+length:]
	}
	return n, nil
}

// errHello says that a stream does not begin with a ServerHello.
var errHello = errors.New("no ServerHello")

// helloVersion returns the version that a ServerHello chose: that of its
// supported_versions extension, else its legacy one (RFC 8446, section 4.1.3).
func helloVersion(b []byte) (uint16, error) {
	const header, fixed = 5 + 4, 2 + 32
	if len(b) < header+fixed+1 || b[0] != 22 || b[5] != 2 {
		return 0, errHello
	}
	b = b[header:]
	version := binary.BigEndian.Uint16(b)
	b = b[fixed:]
	session := int(b[0])
	if len(b) < 1+session+2+1+2 {
		return 0, errHello
	}
	b = b[1+session+2+1:] // session id, cipher suite, compression
	end := min(int(binary.BigEndian.Uint16(b))+2, len(b))
	for b = b[2:end]; len(b) >= 4; {
		typ, length := binary.BigEndian.Uint16(b), int(binary.BigEndian.Uint16(b[2:]))
		if len(b) < 4+length {
			break
		}
		if typ == 43 && length == 2 {
			version = binary.BigEndian.Uint16(b[4:])
		}
		b = b[4+length:]
	}
	return version, nil
}
