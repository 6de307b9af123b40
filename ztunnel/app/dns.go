package app

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/culvert-mesh/culvert/pkg/environ"
	"github.com/culvert-mesh/culvert/pkg/logging"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/ztunnel/dns"
)

// resolvConf tells the node's own name servers.
const resolvConf = "/etc/resolv.conf"

// readDNS reads what concerns DNS from proxy metadata. Names are answered unless
// the metadata says otherwise: the node agent redirects DNS by default too.
func (c *Config) readDNS(e *environ.Env) {
	capture, told := c.Metadata["DNS_CAPTURE"]
	c.DNSCapture = !told || capture == "true"
	c.PreferredNamespace = e.Text("PREFERED_SERVICE_NAMESPACE", "") // so spelled upstream
	at := c.Metadata["DNS_PROXY_ADDR"]
	if at == "" {
		at = fmt.Sprintf("localhost:%d", mesh.PortDNS)
	}
	port, everywhere := strings.CutPrefix(at, "localhost")
	if everywhere {
		at = "127.0.0.1" + port
	}
	addr, err := netip.ParseAddrPort(at)
	if err != nil || addr.Port() == 0 || !addr.Addr().IsLoopback() {
		e.Failf("ISTIO_META_DNS_PROXY_ADDR", "%q is neither localhost:PORT nor a loopback address and a port", at)
		return
	}
	c.DNSAddrs = []netip.AddrPort{netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())}
	if everywhere {
		c.DNSAddrs = append(c.DNSAddrs, netip.AddrPortFrom(netip.IPv6Loopback(), addr.Port()))
	}
}

// buildDNS gives the node what answers its pods' DNS, and ztunnel what finds hosts
// for itself.
func (a *App) buildDNS() error {
	servers := dns.SystemServers(resolvConf)
	a.node.Resolver = dns.NewResolver(dns.ResolverConfig{Servers: servers})
	if !a.cfg.DNSCapture {
		return nil
	}
	a.node.Settings.DNSAddrs = a.cfg.DNSAddrs
	if !a.cfg.IPv6 {
		a.node.Settings.DNSAddrs = a.cfg.DNSAddrs[:1]
	}
	a.node.DNS = dns.NewNode(dns.NodeConfig{
		View:     a.store,
		Zone:     dns.Zone{Domain: a.cfg.ClusterDomain, Preferred: a.cfg.PreferredNamespace},
		Servers:  servers,
		Registry: a.registry,
		Log:      logging.Scope(a.log, "dns"),
	})
	return nil
}
