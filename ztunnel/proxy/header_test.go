package proxy

import (
	"encoding/hex"
	"net/netip"
	"testing"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// TestProxyHeader compares with bytes written by hand from the PROXY protocol
// specification, version 2.
func TestProxyHeader(t *testing.T) {
	t.Parallel()
	id := mesh.Identity{TrustDomain: "td", Namespace: "n", ServiceAccount: "s"}
	const signature = "0d0a0d0a000d0a515549540a"
	uri := hex.EncodeToString([]byte("spiffe://td/ns/n/sa/s"))
	for _, c := range []struct {
		src, dst string
		id       mesh.Identity
		want     string
	}{
		{"10.0.0.1:258", "10.0.0.2:80", mesh.Identity{}, signature + "2111000c" + "0a000001" + "0a000002" + "0102" + "0050"},
		{"10.0.0.1:258", "10.0.0.2:80", id, signature + "21110024" + "0a000001" + "0a000002" + "0102" + "0050" + "d00015" + uri},
		{"[fd00::1]:258", "[fd00::2]:80", mesh.Identity{}, signature + "21210024" +
			"fd000000000000000000000000000001" + "fd000000000000000000000000000002" + "0102" + "0050"},
		{"10.0.0.1:258", "[fd00::2]:80", mesh.Identity{}, signature + "21210024" +
			"00000000000000000000ffff0a000001" + "fd000000000000000000000000000002" + "0102" + "0050"},
	} {
		got := hex.EncodeToString(proxyHeader(netip.MustParseAddrPort(c.src), netip.MustParseAddrPort(c.dst), c.id))
		if got != c.want {
			t.Errorf("%s to %s:\n got %s\nwant %s", c.src, c.dst, got, c.want)
		}
	}
}
