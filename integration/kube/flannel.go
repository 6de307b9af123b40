package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// CNI=flannel: nothing but flannel's VXLAN network joins the pods of different nodes.
//
//	up: spec.podCIDR of each node ──▶ flanneld ──▶ subnet.env ──▶ the node's conflist
//
// Flannel's own CNI plugin does nothing but read subnet.env each time it is called, and
// call the bridge plugin with what is there. Here the node does that once.

// Files of flannel on a node, each of which has a /run of its own.
const (
	flannelConfig = "/run/flannel/net-conf.json"
	flannelSubnet = "/run/flannel/subnet.env"
)

// flannelRights are what flanneld may do: what its own manifest allows.
const flannelRights = `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: flannel}
rules:
- {apiGroups: [""], resources: [nodes], verbs: [get, list, watch]}
- {apiGroups: [""], resources: [nodes/status], verbs: [patch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: flannel}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: flannel}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: flannel}]
`

// bootFlannel makes in the API server what flanneld waits for.
func bootFlannel(ctx context.Context, api *client) error {
	if err := until(ctx, "flannel has its rights", func() error { return api.apply(ctx, flannelRights) }); err != nil {
		return err
	}
	for _, n := range nodes {
		pods := placeOf(n).pods
		patch, err := json.Marshal(fields{"spec": fields{"podCIDR": pods, "podCIDRs": []string{pods}}})
		if err != nil {
			return err
		}
		if err := until(ctx, n+" has addresses for pods", func() error {
			return api.do(ctx, http.MethodPatch, "/api/v1/nodes/"+n, "application/merge-patch+json", patch, nil)
		}); err != nil {
			return err
		}
	}
	return nil
}

// startFlannel starts flanneld on a node, and makes the node's CNI configuration as
// soon as flanneld has said which addresses are the node's.
func (s *supervisor) startFlannel() error {
	if err := os.MkdirAll(filepath.Dir(flannelConfig), 0o755); err != nil {
		return err
	}
	config := fields{"Network": podRange, "EnableNFTables": proxyMode() == "nftables", "Backend": fields{"Type": "vxlan"}}
	if err := writeJSON(flannelConfig, config); err != nil {
		return err
	}
	if err := os.Setenv("NODE_NAME", s.place); err != nil {
		return err
	}
	if err := s.start("flanneld", "--kubeconfig-file="+s.layout.kubeconfig("flannel"), "--net-config-path="+flannelConfig, "--subnet-file="+flannelSubnet); err != nil {
		return err
	}
	go func() {
		for ; ; time.Sleep(50 * time.Millisecond) {
			list, err := flannelNetwork(flannelSubnet)
			if err == nil {
				err = writeJSON(cniFile, list)
			}
			if err == nil {
				return
			}
			if !os.IsNotExist(err) {
				fmt.Println("flannel's CNI configuration:", err)
			}
		}
	}()
	return nil
}

// flannelNetwork is the CNI configuration of flannel's manifest, with what flannel's
// plugin makes of it and of subnet.env.
func flannelNetwork(file string) (any, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	env := map[string]string{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), "=")
		env[name] = value
	}
	mtu, errMTU := strconv.Atoi(env["FLANNEL_MTU"])
	gateway, errSubnet := netip.ParsePrefix(env["FLANNEL_SUBNET"]) // the bridge's own address, and the subnet
	if err := errors.Join(lines.Err(), errMTU, errSubnet); err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	return fields{"name": "cbr0", "cniVersion": "0.3.1", "plugins": []any{
		fields{"type": "bridge", "bridge": "cni0", "mtu": mtu, "hairpinMode": true, "isGateway": true, "isDefaultGateway": true,
			"ipMasq": env["FLANNEL_IPMASQ"] != "true",
			"ipam": fields{"type": "host-local", "ranges": []any{[]any{fields{"subnet": gateway.Masked().String()}}},
				"routes": []any{fields{"dst": env["FLANNEL_NETWORK"]}}}},
		fields{"type": "portmap", "capabilities": fields{"portMappings": true}},
	}}, nil
}
