// Package netpolicy evaluates Kubernetes NetworkPolicies, finds those that let a pod's
// callers through to its ports but not to the tunnel's, and makes of them what ztunnel
// can hold to at the tunnel's end.
//
//	policies, pods, namespaces ──▶ Cluster.Allowed(direction, from, to, port) bool
//	                        ├────▶ Blocked ──▶ []Finding: which pods are cut off, by which policies
//	                        └────▶ Set.Deny ──▶ mesh.Rule: what ztunnel refuses at the tunnel's end
//
// A pod of the mesh is called on TCP port 15008 whatever port its client means. A
// policy that names ports, and was written before the mesh came, allows the client's
// port and not that one: the connection is dropped by the network, and neither the
// client nor its ztunnel hears of it. Policies of other kinds than NetworkPolicy are
// not looked at. Everything here is pure and safe for concurrent use.
package netpolicy

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Cluster is what policies are evaluated against.
type Cluster struct {
	Namespaces []corev1.Namespace
	Pods       []corev1.Pod
	Policies   []networkingv1.NetworkPolicy
	InMesh     func(*corev1.Pod) bool // which pods Blocked is about; nil: those that are captured
}

// Direction is which end of a connection a policy is about.
type Direction string

// The two directions.
const (
	Ingress Direction = "ingress" // policies of the pod that is called
	Egress  Direction = "egress"  // policies of the pod that calls
)

// rule is one rule of a policy, of either direction.
type rule struct {
	policy *networkingv1.NetworkPolicy
	ports  []networkingv1.NetworkPolicyPort
	peers  []networkingv1.NetworkPolicyPeer
}

// rules are what applies to a pod in a direction; isolated is whether any policy
// does. A pod that none selects may do everything.
type rules struct {
	isolated []string // names of the policies
	rules    []rule
}

// rulesOf returns the rules of all policies that select the pod.
func (c Cluster) rulesOf(p *corev1.Pod, d Direction) (r rules) {
	for i := range c.Policies {
		policy := &c.Policies[i]
		if policy.Namespace != p.Namespace || !about(policy, d) || !selects(&policy.Spec.PodSelector, p.Labels) {
			continue
		}
		r.isolated = append(r.isolated, policy.Namespace+"/"+policy.Name)
		if d == Ingress {
			for _, in := range policy.Spec.Ingress {
				r.rules = append(r.rules, rule{policy, in.Ports, in.From})
			}
			continue
		}
		for _, out := range policy.Spec.Egress {
			r.rules = append(r.rules, rule{policy, out.Ports, out.To})
		}
	}
	slices.Sort(r.isolated)
	return r
}

// about reports whether a policy says anything about a direction: by its types, and
// without them about ingress, and about egress when it has such rules.
func about(p *networkingv1.NetworkPolicy, d Direction) bool {
	if len(p.Spec.PolicyTypes) == 0 {
		return d == Ingress || len(p.Spec.Egress) > 0
	}
	want := networkingv1.PolicyTypeIngress
	if d == Egress {
		want = networkingv1.PolicyTypeEgress
	}
	return slices.Contains(p.Spec.PolicyTypes, want)
}

// selects evaluates a selector. One that is malformed selects nobody: the API server
// does not take such.
func selects(s *metav1.LabelSelector, of map[string]string) bool {
	selector, err := metav1.LabelSelectorAsSelector(s)
	return err == nil && selector.Matches(labels.Set(of))
}

// Allowed reports whether the policies of one end let a connection through: those of
// to for Ingress, those of from for Egress. Port is the TCP port that is called. No
// policy keeps a pod from itself.
func (c Cluster) Allowed(d Direction, from, to *corev1.Pod, port uint16) bool {
	if from.Namespace == to.Namespace && from.Name == to.Name {
		return true
	}
	self, peer := to, from
	if d == Egress {
		self, peer = from, to
	}
	return c.rulesOf(self, d).allow(c, self.Namespace, peer, to, port)
}

// allow reports whether one of the rules lets the peer through on a port of target.
func (r rules) allow(c Cluster, namespace string, peer, target *corev1.Pod, port uint16) bool {
	if len(r.isolated) == 0 {
		return true
	}
	return slices.ContainsFunc(r.rules, func(u rule) bool {
		return u.hasPort(target, port) && u.hasPeer(c, namespace, peer)
	})
}

// hasPort evaluates ports; none are all. Names are those of the called pod's
// containers.
func (u rule) hasPort(target *corev1.Pod, port uint16) bool {
	if len(u.ports) == 0 {
		return true
	}
	return slices.ContainsFunc(u.ports, func(p networkingv1.NetworkPolicyPort) bool {
		if !tcp(p) {
			return false
		}
		switch {
		case p.Port == nil:
			return true
		case p.Port.Type == intstr.String:
			return slices.Contains(named(target, p.Port.StrVal), port)
		case p.EndPort != nil:
			return int32(port) >= p.Port.IntVal && int32(port) <= *p.EndPort
		}
		return int32(port) == p.Port.IntVal
	})
}

func named(p *corev1.Pod, name string) (ports []uint16) {
	for _, ctr := range serving(p) {
		for _, cp := range ctr.Ports {
			if cp.Name == name && (cp.Protocol == "" || cp.Protocol == corev1.ProtocolTCP) {
				ports = append(ports, uint16(cp.ContainerPort))
			}
		}
	}
	return ports
}

// serving are the containers that run as long as the pod does.
func serving(p *corev1.Pod) []corev1.Container {
	all := slices.Clone(p.Spec.Containers)
	for _, ctr := range p.Spec.InitContainers {
		if ctr.RestartPolicy != nil && *ctr.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			all = append(all, ctr)
		}
	}
	return all
}

// hasPeer evaluates peers; none are all. namespace is the policy's.
func (u rule) hasPeer(c Cluster, namespace string, peer *corev1.Pod) bool {
	if len(u.peers) == 0 {
		return true
	}
	return slices.ContainsFunc(u.peers, func(p networkingv1.NetworkPolicyPeer) bool {
		if p.IPBlock != nil {
			return inBlock(p.IPBlock, peer)
		}
		switch {
		case peer.Spec.HostNetwork: // it has the node's address, and no labels count
			return false
		case p.NamespaceSelector == nil:
			if peer.Namespace != namespace {
				return false
			}
		case !selects(p.NamespaceSelector, c.namespaceLabels(peer.Namespace)):
			return false
		}
		return p.PodSelector == nil || selects(p.PodSelector, peer.Labels)
	})
}

func (c Cluster) namespaceLabels(name string) map[string]string {
	for i := range c.Namespaces {
		if c.Namespaces[i].Name == name {
			return c.Namespaces[i].Labels
		}
	}
	return map[string]string{"kubernetes.io/metadata.name": name} // every namespace has it
}

func inBlock(b *networkingv1.IPBlock, p *corev1.Pod) bool {
	block, err := netip.ParsePrefix(b.CIDR)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(addresses(p), func(ip netip.Addr) bool {
		return block.Contains(ip) && !slices.ContainsFunc(b.Except, func(s string) bool {
			except, err := netip.ParsePrefix(s)
			return err == nil && except.Contains(ip)
		})
	})
}

func addresses(p *corev1.Pod) (ips []netip.Addr) {
	for _, s := range append([]corev1.PodIP{{IP: p.Status.PodIP}}, p.Status.PodIPs...) {
		if ip, err := netip.ParseAddr(s.IP); err == nil && !slices.Contains(ips, ip.Unmap()) {
			ips = append(ips, ip.Unmap())
		}
	}
	return ips
}
