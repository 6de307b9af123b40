// Command flanneld is flannel's daemon with its VXLAN network, for a cluster that has
// its leases in Node objects: the program as it is released brings the clients of
// several clouds along.
//
//	Node objects ──leases──▶ flanneld ──▶ flannel.1 (VXLAN), routes, neighbours
//	                            ├──▶ masquerading and forwarding (iptables or nftables)
//	                            └──▶ /run/flannel/subnet.env, for the CNI configuration
//
// Everything it does is done by flannel's own packages, in the order of its own main.
// Its node is $NODE_NAME, whose spec.podCIDR must be set.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/flannel-io/flannel/pkg/backend"
	_ "github.com/flannel-io/flannel/pkg/backend/vxlan"
	"github.com/flannel-io/flannel/pkg/ip"
	"github.com/flannel-io/flannel/pkg/ipmatch"
	"github.com/flannel-io/flannel/pkg/subnet"
	"github.com/flannel-io/flannel/pkg/subnet/kube"
	"github.com/flannel-io/flannel/pkg/trafficmngr"
	"github.com/flannel-io/flannel/pkg/trafficmngr/iptables"
	"github.com/flannel-io/flannel/pkg/trafficmngr/nftables"
)

// resync is how often, in seconds, flannel looks whether its rules are still there.
const resync = 5

func main() {
	kubeconfig := flag.String("kubeconfig-file", "", "how to reach the API server")
	config := flag.String("net-config-path", "/etc/kube-flannel/net-conf.json", "flannel's network configuration")
	file := flag.String("subnet-file", "/run/flannel/subnet.env", "where the node's subnet is written")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *kubeconfig, *config, *file); err != nil {
		fmt.Fprintln(os.Stderr, "flanneld:", err)
		os.Exit(1)
	}
}

// run is the daemon. It returns when ctx ends.
func run(ctx context.Context, kubeconfig, configFile, subnetFile string) error {
	leases, err := kube.NewSubnetManager(ctx, "", kubeconfig, "flannel.alpha.coreos.com", configFile, true)
	if err != nil {
		return fmt.Errorf("reach the nodes' leases: %w", err)
	}
	config, err := leases.GetNetworkConfig(ctx)
	if err != nil {
		return err
	}
	family, err := ipmatch.GetIPFamily(config.EnableIPv4, config.EnableIPv6)
	if err != nil {
		return err
	}
	link, err := ipmatch.LookupExtIface("", "", "", family, ipmatch.PublicIPOpts{})
	if err != nil {
		return fmt.Errorf("find the link to other nodes: %w", err)
	}
	kind, err := backend.NewManager(ctx, leases, link).GetBackend(config.BackendType)
	if err != nil {
		return err
	}
	var all sync.WaitGroup
	network, err := kind.RegisterNetwork(ctx, &all, config)
	if err != nil {
		return fmt.Errorf("register the network: %w", err)
	}
	if err := setRules(ctx, config, network); err != nil {
		return err
	}
	own := network.Lease()
	if err := leases.HandleSubnetFile(subnetFile, config, true, own.Subnet, own.IPv6Subnet, network.MTU()); err != nil {
		return fmt.Errorf("write the node's subnet: %w", err)
	}
	all.Go(func() { network.Run(ctx) })
	if err := leases.CompleteLease(ctx, own, &all); err != nil {
		return fmt.Errorf("tell that the node's network is there: %w", err)
	}
	all.Wait()
	return nil
}

// setRules makes what leaves the pods' network look as if it came from the node, and
// lets the node forward.
func setRules(ctx context.Context, config *subnet.Config, network backend.Network) error {
	var rules trafficmngr.TrafficManager = &iptables.IPTablesManager{}
	if config.EnableNFTables {
		rules = &nftables.NFTablesManager{}
	}
	if err := rules.Init(ctx); err != nil {
		return fmt.Errorf("prepare rules: %w", err)
	}
	no, no6 := ip.IP4Net{}, ip.IP6Net{} // nothing is left of an earlier run
	if err := rules.SetupAndEnsureMasqRules(ctx, config.Network, no, no, config.IPv6Network, no6, no6, network.Lease(), resync, false); err != nil {
		return fmt.Errorf("set rules that masquerade: %w", err)
	}
	rules.SetupAndEnsureForwardRules(ctx, config.Network, config.IPv6Network, resync)
	return nil
}
