package redirect

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netns"
)

// Redirected returns how many open TCP connections of the namespace need our
// rules to go on. They are known by ztunnel's end of them:
//
//   - a socket with local port 15001 or 15006 took a redirected connection;
//   - a socket whose local address is none of the pod's speaks to a program of
//     the pod in a client's name, and its replies come back by mark and table 100.
//
// Connections in TIME_WAIT need nothing any more.
func Redirected(ns *netns.NS) (n int, err error) {
	err = ns.Do(func() error {
		n, err = countRedirected()
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("redirect: count connections of %s: %w", ns.ID(), err)
	}
	return n, nil
}

// countRedirected runs inside the namespace.
func countRedirected() (int, error) {
	own, err := localAddrs()
	if err != nil {
		return 0, err
	}
	total := 0
	for _, path := range []string{"/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"} {
		n, err := countIn(path, own)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return 0, err
		}
		total += n
	}
	return total, nil
}

func localAddrs() (map[netip.Addr]bool, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	own := map[netip.Addr]bool{}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			own[p.Addr().Unmap()] = true
		}
	}
	return own, nil
}

func countIn(path string, own map[netip.Addr]bool) (n int, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		s, err := parseSocket(lines.Text())
		if err == nil && s.redirected(own) {
			n++
		}
	}
	return n, lines.Err()
}

// socket is a line of /proc/net/tcp.
type socket struct {
	local netip.AddrPort
	state uint64
}

// States of a socket that has no connection that data could still flow on
// (include/net/tcp_states.h).
const (
	tcpTimeWait = 6
	tcpClose    = 7
	tcpListen   = 10
)

func (s socket) redirected(own map[netip.Addr]bool) bool {
	switch s.state {
	case tcpTimeWait, tcpClose, tcpListen:
		return false
	}
	if s.local.Port() == mesh.PortOutbound || s.local.Port() == mesh.PortPlaintext {
		return true
	}
	return !own[s.local.Addr()] && !s.local.Addr().IsLoopback()
}

// parseSocket reads "0: 0100007F:3A99 00000000:0000 0A …": local address and
// port, remote ones, state, all in hexadecimal.
func parseSocket(line string) (socket, error) {
	f := strings.Fields(line)
	if len(f) < 4 {
		return socket{}, errors.New("short line")
	}
	addr, port, ok := strings.Cut(f[1], ":")
	if !ok {
		return socket{}, errors.New("no port")
	}
	raw, err := hex.DecodeString(addr)
	if err != nil {
		return socket{}, err
	}
	toNetworkOrder(raw)
	ip, ok := netip.AddrFromSlice(raw)
	if !ok {
		return socket{}, errors.New("no address")
	}
	p, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return socket{}, err
	}
	state, err := strconv.ParseUint(f[3], 16, 8)
	if err != nil {
		return socket{}, err
	}
	return socket{netip.AddrPortFrom(ip.Unmap(), uint16(p)), state}, nil
}

// toNetworkOrder turns 32-bit words that the kernel printed as numbers into the
// bytes of an address.
func toNetworkOrder(raw []byte) {
	for i := 0; i+4 <= len(raw); i += 4 {
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
}
