package proof

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/containernetworking/cni/libcni"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/culvert-mesh/culvert/pkg/netns"
)

// PodName is the name under which the runtime's plugins are told of the pod. No pod
// of that name is known to the API server.
const PodName = "culvert-proof"

// containerID is the same each time, so that DEL finds what a crash has left.
const containerID = "culvert-proof"

// chain is the node's CNI configuration, as the runtime sees it.
type chain struct {
	conf  *libcni.NetworkConfigList
	file  string
	cni   *libcni.CNIConfig
	about *libcni.RuntimeConf
}

// first returns the configuration that the runtime takes: the first valid one in
// the order of names.
func first(folder string) (*libcni.NetworkConfigList, string, error) {
	files, err := libcni.ConfFiles(folder, []string{".conf", ".conflist", ".json"})
	if err != nil {
		return nil, "", err
	}
	slices.Sort(files)
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		if filepath.Ext(file) != ".conflist" {
			raw = listOf(raw)
		}
		if list, err := libcni.NetworkConfFromBytes(raw); err == nil && len(list.Plugins) > 0 {
			return list, filepath.Base(file), nil
		}
	}
	return nil, "", fmt.Errorf("no valid CNI configuration in %s", folder)
}

// listOf is a plain configuration as a list of one; nil when it is no JSON object.
func listOf(plain []byte) []byte {
	var one map[string]any
	if err := json.Unmarshal(plain, &one); err != nil {
		return nil
	}
	list, err := json.Marshal(map[string]any{"cniVersion": one["cniVersion"], "name": one["name"], "plugins": []any{one}})
	if err != nil {
		return nil
	}
	return list
}

// newChain reads the configuration.
func newChain(cfg Config, ns *netns.NS) (*chain, error) {
	conf, file, err := first(cfg.ConfDir)
	if err != nil {
		return nil, err
	}
	// Our descriptor is a path to the namespace for as long as we hold it: nothing
	// is left behind, however we end.
	return &chain{
		conf: conf, file: file,
		cni: libcni.NewCNIConfigWithCacheDir([]string{cfg.BinDir}, cfg.StateDir, &nodeExec{proc: cfg.Proc}),
		about: &libcni.RuntimeConf{
			ContainerID: containerID, NetNS: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.FD()), IfName: "eth0",
			Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", cfg.Namespace}, {"K8S_POD_NAME", PodName},
				{"K8S_POD_UID", PodName}, {"K8S_POD_INFRA_CONTAINER_ID", containerID}},
		},
	}, nil
}

// add makes the pod's network and returns its addresses.
func (c *chain) add(ctx context.Context) ([]netip.Addr, error) {
	out, err := c.cni.AddNetworkList(ctx, c.conf, c.about)
	if err != nil {
		return nil, err
	}
	result, err := current.NewResultFromResult(out)
	if err != nil {
		return nil, fmt.Errorf("the chain's result: %w", err)
	}
	var ips []netip.Addr
	for _, ip := range result.IPs {
		if a, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			ips = append(ips, a.Unmap())
		}
	}
	return ips, nil
}

// del takes the pod's network down. What add was given counts, not what the folder
// holds now.
func (c *chain) del(ctx context.Context) error {
	if raw, about, err := c.cni.GetNetworkListCachedConfig(c.conf, c.about); err == nil && raw != nil {
		if cached, err := libcni.NetworkConfFromBytes(raw); err == nil {
			about.NetNS = c.about.NetNS
			return c.cni.DelNetworkList(ctx, cached, about)
		}
	}
	return c.cni.DelNetworkList(ctx, c.conf, c.about)
}
