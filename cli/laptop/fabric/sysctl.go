package fabric

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// sysctl is one kernel setting of the namespace that the calling thread is in.
type sysctl struct {
	path     string // under /proc/sys
	value    string
	optional bool // a kernel without it is fine
}

func (s sysctl) write() error {
	err := os.WriteFile("/proc/sys/"+s.path, []byte(s.value), 0)
	if s.optional && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("set %s=%s: %w", s.path, s.value, err)
	}
	return nil
}

// nodeSysctls make a namespace forward for its pods. It never tells a pod that a
// neighbour is reachable without it: answers would bypass its rules.
var nodeSysctls = []sysctl{
	{"net/ipv4/ip_forward", "1", false},
	{"net/ipv6/conf/all/forwarding", "1", true},
	{"net/ipv4/conf/all/send_redirects", "0", false},
	{"net/ipv4/conf/default/send_redirects", "0", false},
	{"net/ipv4/conf/all/rp_filter", "0", false},
	{"net/ipv4/conf/default/rp_filter", "0", false},
}

// podSysctls let a successor's listener take over the connections that wait in a
// closing one's queue, and let any program send pings.
var podSysctls = []sysctl{
	{"net/ipv4/tcp_migrate_req", "1", true},
	{"net/ipv4/ping_group_range", "0 2147483647", true},
	{"net/ipv4/ip_unprivileged_port_start", "0", true},
	{"net/ipv4/conf/all/rp_filter", "0", false},
	{"net/ipv4/conf/default/rp_filter", "0", false},
	{"net/ipv6/conf/all/accept_ra", "0", true},
	{"net/ipv6/conf/default/accept_ra", "0", true},
}

// quietBridges keeps bridged frames out of the rules of the IP layer, where the
// kernel can send them there (br_netfilter).
func quietBridges() {
	for _, name := range []string{"bridge-nf-call-iptables", "bridge-nf-call-ip6tables", "bridge-nf-call-arptables"} {
		_ = sysctl{"net/bridge/" + name, "0", true}.write()
	}
}
