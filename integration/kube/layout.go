package main

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// number tells clusters on one machine apart: CULVERT_KUBE_NUMBER, 0 to 9. A cluster
// has its own names and addresses, so that several can run beside each other.
var number = func() int {
	n, err := strconv.Atoi(cmp.Or(os.Getenv("CULVERT_KUBE_NUMBER"), "0"))
	if err != nil || n < 0 || n > 9 {
		fmt.Fprintf(os.Stderr, "kube: CULVERT_KUBE_NUMBER %q: want 0 to 9\n", os.Getenv("CULVERT_KUBE_NUMBER"))
		os.Exit(2)
	}
	return n
}()

// Names and addresses of the cluster. `culvert up` uses none of them.
var (
	prefix     = fmt.Sprintf("ckube%d-", number)  // of network namespaces, links and control groups
	bridge     = fmt.Sprintf("ckube%d", number)   // joins the machine, the control plane and the nodes
	network    = fmt.Sprintf("10.79.%d.", number) // of the bridge
	bridgeIP   = network + "1"
	controlIP  = network + "2"
	podPrefix  = fmt.Sprintf("10.%d.", 246+number)
	podRange   = podPrefix + "0.0/16"
	services   = fmt.Sprintf("10.%d.0.0/16", 98+number)
	kubernetes = fmt.Sprintf("10.%d.0.1", 98+number) // the API server's service address
	dnsIP      = fmt.Sprintf("10.%d.0.10", 98+number)
)

// control is where the control plane runs: a node of the network, not of the cluster.
const control = "control"

// nodes are the cluster's nodes. Their number is their place, from 1. CULVERT_KUBE_NODES
// is how many there are, 2 to 9.
var nodes = func() (names []string) {
	count, err := strconv.Atoi(cmp.Or(os.Getenv("CULVERT_KUBE_NODES"), "2"))
	if err != nil || count < 2 || count > maxNodes {
		fmt.Fprintf(os.Stderr, "kube: CULVERT_KUBE_NODES %q: want 2 to %d\n", os.Getenv("CULVERT_KUBE_NODES"), maxNodes)
		os.Exit(2)
	}
	for n := range count {
		names = append(names, nodeName(n))
	}
	return names
}()

const maxNodes = 9

func nodeName(n int) string { return fmt.Sprintf("node%d", n+1) }

// everyPlace are the names of all places that a cluster may have.
func everyPlace() []string {
	names := []string{control}
	for n := range maxNodes {
		names = append(names, nodeName(n))
	}
	return names
}

// place is an address on the bridge, and the pods behind it.
type place struct{ name, ip, pods, ip6, pods6 string }

// places are everything that hangs on the bridge, the control plane first.
func places() []place {
	all := []place{{name: control, ip: controlIP, ip6: network6 + "2"}}
	for i, n := range nodes {
		all = append(all, place{
			name: n, ip: fmt.Sprintf("%s%d", network, 11+i), pods: fmt.Sprintf("%s%d.0/24", podPrefix, i+1),
			ip6: fmt.Sprintf("%s%d", network6, 11+i), pods6: fmt.Sprintf("fd00:246:%d:%d::/64", number, i+1),
		})
	}
	return all
}

func placeOf(name string) place {
	for _, p := range places() {
		if p.name == name {
			return p
		}
	}
	panic("no such node: " + name)
}

// layout is where things are on disk.
//
//	bin/, bin/cni/   programs          images/  archives for the nodes to import
//	cache/           Go's caches       cluster/ everything of the running cluster
//
// All but cluster/ is kept between runs.
type layout string

// theLayout reads CULVERT_KUBE, by default ${XDG_CACHE_HOME:-~/.cache}/culvert-kube.
func theLayout() (layout, error) {
	if dir := os.Getenv("CULVERT_KUBE"); dir != "" {
		dir, err := filepath.Abs(dir)
		return layout(dir), err
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", err
	}
	return layout(filepath.Join(cmp.Or(os.Getenv("XDG_CACHE_HOME"), filepath.Join(home, ".cache")), "culvert-kube")), nil
}

func (l layout) path(elements ...string) string {
	return filepath.Join(append([]string{string(l)}, elements...)...)
}

func (l layout) bin(name string) string   { return l.path("bin", name) }
func (l layout) image(name string) string { return l.path("images", "culvert-"+name+".tar") }
func (l layout) cluster(elements ...string) string {
	name := "cluster"
	if number > 0 {
		name += strconv.Itoa(number)
	}
	return l.path(append([]string{name}, elements...)...)
}
func (l layout) pki(name string) string       { return l.cluster("pki", name) }
func (l layout) kubeconfig(who string) string { return l.pki(who + ".kubeconfig") }
func (l layout) node(n string, rest ...string) string {
	return l.cluster(append([]string{n}, rest...)...)
}

// up marks that the cluster has come up whole.
func (l layout) up() string { return l.cluster("up") }

// environment is ours with the cluster's programs found first.
func (l layout) environment(more ...string) []string {
	env := []string{"PATH=" + l.path("bin") + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "PATH=") {
			env = append(env, v)
		}
	}
	return append(env, more...)
}
