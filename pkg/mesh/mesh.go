// Package mesh holds the words that every part of Culvert shares: identities,
// addresses, workloads, services, policies, waypoints and the well-known
// numbers of the ambient protocols. Nouns only; behaviour lives above.
//
//	Identity  spiffe://cluster.local/ns/shop/sa/cart     who
//	NetAddr   network-1/10.244.1.7                       where, keyed by network
//	Workload  one pod (or an address outside)            what runs there
//	Service   shop/cart.shop.svc.cluster.local           the name for several
//	Policy    shop/only-frontend                         who may talk to whom
//
// Every key carries its network and every workload its cluster from the start,
// so that a second network or cluster is another key and not another code path.
//
// All types are plain values. A value that has been published to readers is
// never changed again: writers build a new one and swap it in. Readers therefore
// need no lock and must not modify what slices and maps they were given.
package mesh

import (
	"fmt"
	"net/netip"
	"strings"
)

// Network names an L3 network in which addresses are unique. The empty network
// is a valid one: the default of a single-network mesh.
type Network string

// Cluster names a Kubernetes cluster. See DefaultCluster.
type Cluster string

// UID is a workload's name on the wire, such as
// "Kubernetes//Pod/shop/cart-7c9f" (protocols: WDS resource names).
type UID string

// PodUID is a Kubernetes pod UID, the key of the ZDS protocol.
type PodUID string

// Defaults that the workload API leaves off the wire.
const (
	DefaultCluster        = Cluster("Kubernetes")
	DefaultTrustDomain    = "cluster.local"
	DefaultServiceAccount = "default"
	DefaultClusterDomain  = "cluster.local"
)

// Well-known ports of ambient mode.
const (
	PortOutbound  = 15001 // ztunnel in the pod: captured outbound TCP
	PortPlaintext = 15006 // ztunnel in the pod: captured inbound plaintext TCP
	PortHBONE     = 15008 // HBONE, mutual TLS and HTTP/2 CONNECT
	PortSOCKS     = 15080 // ztunnel in the pod, loopback only: SOCKS 5, for tests
	PortDNS       = 15053 // ztunnel in the pod, loopback only: DNS proxy
	PortAdmin     = 15000 // admin, loopback only
	PortMetrics   = 15020 // Prometheus
	PortReady     = 15021 // readiness
	PortXDS       = 15012 // control plane: xDS and CA over TLS
)

// Marks that sockets and connections carry inside a pod's namespace; both are
// compared under MarkMask.
const (
	MarkProxy   = 0x539 // on every socket that a ztunnel opens in a pod's namespace
	MarkInbound = 0x111 // conntrack mark: this flow was delivered by ztunnel
	MarkMask    = 0xfff
)

// NetAddr is an address within a network.
type NetAddr struct {
	Network Network
	Addr    netip.Addr
}

// String returns "network/address", the form that the workload API uses as a key.
func (a NetAddr) String() string { return string(a.Network) + "/" + a.Addr.String() }

// ParseNetAddr parses "network/address".
func ParseNetAddr(s string) (NetAddr, error) {
	network, ip, ok := strings.Cut(s, "/")
	if !ok {
		return NetAddr{}, fmt.Errorf("parse network address %q: no '/' between network and address", s)
	}
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		return NetAddr{}, fmt.Errorf("parse network address %q: %w", s, err)
	}
	return NetAddr{Network(network), addr.Unmap()}, nil
}

// NetPrefix is a range of addresses within a network.
type NetPrefix struct {
	Network Network
	Prefix  netip.Prefix
}

// ServiceName is a service's key: hostnames alone are not unique.
type ServiceName struct {
	Namespace string
	Hostname  string
}

// String returns "namespace/hostname", the resource name on the wire.
func (n ServiceName) String() string { return n.Namespace + "/" + n.Hostname }

// IsZero reports whether n names nothing.
func (n ServiceName) IsZero() bool { return n == ServiceName{} }

// ParseServiceName parses "namespace/hostname".
func ParseServiceName(s string) (ServiceName, error) {
	ns, host, ok := strings.Cut(s, "/")
	if !ok || host == "" {
		return ServiceName{}, fmt.Errorf("parse service name %q: want namespace/hostname", s)
	}
	return ServiceName{ns, host}, nil
}

// PolicyName is a policy's key, and its resource name on the wire.
type PolicyName struct {
	Namespace string
	Name      string
}

// String returns "namespace/name".
func (n PolicyName) String() string { return n.Namespace + "/" + n.Name }

// NetworkPolicyPrefix begins the names of policies that are made of Kubernetes'
// NetworkPolicies; no object of Kubernetes has a name with a colon.
const NetworkPolicyPrefix = "NetworkPolicy:"

// NetworkPolicies returns the names of the NetworkPolicies of the namespace that the
// policy is made of, separated by commas; "" when it is of another kind.
func (n PolicyName) NetworkPolicies() string {
	names, ok := strings.CutPrefix(n.Name, NetworkPolicyPrefix)
	if !ok {
		return ""
	}
	names, _, _ = strings.Cut(names, ";")
	return names
}

// ParsePolicyName parses "namespace/name".
func ParsePolicyName(s string) (PolicyName, error) {
	ns, name, ok := strings.Cut(s, "/")
	if !ok || name == "" {
		return PolicyName{}, fmt.Errorf("parse policy name %q: want namespace/name", s)
	}
	return PolicyName{ns, name}, nil
}

// PodInfo is what the node agent tells a ztunnel about a pod (ZDS WorkloadInfo).
// ztunnel finds the pod's Workload by these three, never by the pod's UID.
type PodInfo struct {
	Name           string
	Namespace      string
	ServiceAccount string
}

// String returns "namespace/name".
func (p PodInfo) String() string { return p.Namespace + "/" + p.Name }

// Locality says where a workload runs, from wide to narrow.
type Locality struct {
	Region  string
	Zone    string
	Subzone string
}
