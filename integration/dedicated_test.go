package integration

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"testing"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// TestZtunnelDedicated runs a ztunnel for one workload, in that workload's own
// namespace and without a node agent, and asks its SOCKS server.
func TestZtunnelDedicated(t *testing.T) {
	t.Parallel()
	f := newField(t)
	client, server, stranger := f.pod("client", "node-1"), f.pod("server", "node-2"), f.outside("stranger")
	f.service("nothing", "10.99.0.3", "{80: 7000}")
	server.listen(t, 7000, echo)
	client.listen(t, 7000, echo)
	stranger.listen(t, 7000, echo)
	// The ruleset here tells ztunnel's connections by their mark.
	z1 := f.ztunnel("node-1", f.agent("node-1"), client.NS, "PROXY_MODE=dedicated", "PROXY_WORKLOAD_INFO=default/client/client",
		"PACKET_MARK=1337", "UNSTABLE_ENABLE_SOCKS5=true")
	z2 := f.ztunnel("node-2", f.agent("node-2", server), nil)

	if from := client.exchange(t, server.IP4, 7000); from != client.IP4.String() {
		t.Errorf("the server saw %s", from)
	}
	z2.wantLog(`src.identity="?spiffe://cluster.local/ns/default/sa/client"? .*direction="?inbound`)
	server.exchange(t, client.IP4, 7000)
	stranger.exchange(t, client.IP6, 7000)
	z1.wantLog(`src.identity="?spiffe://cluster.local/ns/default/sa/server"? .*direction="?inbound`)

	for _, c := range []struct {
		to   netip.AddrPort
		code byte
	}{
		{netip.AddrPortFrom(server.IP4, 7000), 0},
		{netip.AddrPortFrom(server.IP6, 7000), 0},
		{netip.AddrPortFrom(stranger.IP4, 7000), 0},
		{netip.AddrPortFrom(stranger.IP4, 9), 5},
		{netip.MustParseAddrPort("10.99.0.3:80"), 1},
		{netip.MustParseAddrPort("127.0.0.1:15080"), 1},
		{netip.AddrPortFrom(client.IP4, mesh.PortOutbound), 1},
	} {
		conn := client.dial(t, netip.MustParseAddr("127.0.0.1"), mesh.PortSOCKS)
		if code := socksConnect(t, conn, c.to); code != c.code {
			t.Errorf("SOCKS to %s: answer %d, want %d", c.to, code, c.code)
		}
		if c.code == 0 {
			io.WriteString(conn, "hello")
			conn.CloseWrite()
			if got, err := io.ReadAll(conn); err != nil || len(got) < 5 || string(got[len(got)-5:]) != "hello" {
				t.Errorf("SOCKS to %s: %q, %v", c.to, got, err)
			}
		}
		conn.Close()
	}
	for _, garbage := range []string{"\x04\x01", "\x05\x01\x02", "\x05\x01\x00\x05\x02\x00\x01", "\x05\x01\x00\x05\x01\x00\x09", "GET / HTTP/1.1\r\n\r\n"} {
		conn := client.dial(t, netip.MustParseAddr("127.0.0.1"), mesh.PortSOCKS)
		io.WriteString(conn, garbage)
		conn.CloseWrite()
		if _, err := io.Copy(io.Discard, conn); isTimeout(err) {
			t.Errorf("%q is not refused", garbage)
		}
		conn.Close()
	}
}

// socksConnect asks a SOCKS server for a connection and returns its answer.
func socksConnect(t *testing.T, c net.Conn, to netip.AddrPort) byte {
	t.Helper()
	kind := byte(1)
	if to.Addr().Is6() {
		kind = 4
	}
	request := append([]byte{5, 1, 0, 5, 1, 0, kind}, to.Addr().AsSlice()...)
	if _, err := c.Write(binary.BigEndian.AppendUint16(request, to.Port())); err != nil {
		t.Fatal(err)
	}
	var answer [12]byte // to the greeting, and to the request
	if _, err := io.ReadFull(c, answer[:]); err != nil {
		t.Fatalf("SOCKS to %s: %v", to, err)
	}
	return answer[3]
}
