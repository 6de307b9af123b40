package compile

import (
	"net/netip"
	"slices"

	"github.com/culvert-mesh/culvert/controlplane/source"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netpolicy"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

// networkPolicy compiles the sets of NetworkPolicies that p is the first of, by name:
// one mesh.Policy for each set that isolates some pod of the mesh.
func (c *compilation) networkPolicy(p *source.NetworkPolicy) {
	if !c.mesh.NetworkPolicies {
		c.bad(Accepted, reason.Unsupported, "", "not enforced by the mesh: the control plane runs without --network-policies")
		return
	}
	selector := netpolicy.SelectorOf(&p.Spec.PodSelector)
	pods := c.view.List(source.KindPod, p.Namespace, func(o source.Object) bool {
		pod, ok := o.(*source.Pod)
		return ok && held(pod) && selector.Matches(pod.Labels)
	})
	all := c.view.List(source.KindNetworkPolicy, p.Namespace, func(source.Object) bool { return true })
	sets, self := map[string]netpolicy.Set{}, map[string][]netip.Addr{}
	for _, o := range pods {
		pod := o.(*source.Pod)
		set := setOf(pod, all)
		if len(set.Policies) == 0 || set.Policies[0].Name != p.Name || set.Open() {
			continue
		}
		sets[set.Name()] = set
		self[set.Name()] = append(self[set.Name()], addresses(pod.IPs)...)
	}
	names := make([]string, 0, len(sets))
	for name := range sets {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		slices.SortFunc(self[name], netip.Addr.Compare)
		c.out.Policies = append(c.out.Policies, &mesh.Policy{
			Name:  mesh.PolicyName{Namespace: p.Namespace, Name: name},
			Scope: mesh.ScopeWorkloadSelector, Action: mesh.Deny,
			Rules: []mesh.Rule{sets[name].Deny(peers{c, p.Namespace}, self[name])},
		})
	}
}

// isolation returns the policy that holds a pod to its NetworkPolicies.
func (c *compilation) isolation(p *source.Pod) (mesh.PolicyName, bool) {
	if !c.mesh.NetworkPolicies || !held(p) {
		return mesh.PolicyName{}, false
	}
	set := setOf(p, c.view.List(source.KindNetworkPolicy, p.Namespace, func(o source.Object) bool {
		np, ok := o.(*source.NetworkPolicy)
		return ok && netpolicy.SelectorOf(&np.Spec.PodSelector).Matches(p.Labels)
	}))
	return mesh.PolicyName{Namespace: p.Namespace, Name: set.Name()}, !set.Open()
}

// held reports whether tunnels to the pod end at a ztunnel, which holds them to
// policies.
func held(p *source.Pod) bool {
	protocol, native := tunnel(p)
	return protocol == mesh.HBONE && !native && reachable(p)
}

// reachable reports whether the pod has addresses of its own.
func reachable(p *source.Pod) bool {
	return !p.HostNetwork && len(p.IPs) > 0 && p.Phase != "Succeeded" && p.Phase != "Failed"
}

// setOf returns those of a namespace's NetworkPolicies that isolate a pod.
func setOf(p *source.Pod, all []source.Object) netpolicy.Set {
	policies := make([]netpolicy.Policy, 0, len(all))
	for _, o := range all {
		np := o.(*source.NetworkPolicy)
		policies = append(policies, netpolicy.Policy{Name: np.Name, Spec: &np.Spec})
	}
	return netpolicy.NewSet(policies, p.Labels, func(name string) (ports []uint16) {
		for _, port := range p.Ports {
			if port.Name == name && port.Protocol == "TCP" {
				ports = append(ports, uint16(port.Port))
			}
		}
		return ports
	})
}

// peers are the callers that a policy of a namespace names. It implements
// netpolicy.Peers.
type peers struct {
	c         *compilation
	namespace string
}

// Namespaces implements netpolicy.Peers.
func (p peers) Namespaces(s *netpolicy.Selector) (names []string) {
	if s == netpolicy.Own {
		return []string{p.namespace}
	}
	for _, key := range p.c.view.Names(source.KindNamespace, "", func(o source.Object) bool { return s.Matches(o.Metadata().Labels) }) {
		names = append(names, key.Name)
	}
	return names
}

// Principals implements netpolicy.Peers.
func (p peers) Principals(namespace string) string {
	return p.c.mesh.TrustDomain + "/ns/" + namespace + "/sa/"
}

// Addresses implements netpolicy.Peers. A pod that is ending still calls.
func (p peers) Addresses(namespace string, s netpolicy.Selector) (all []netip.Addr) {
	for _, o := range p.c.view.List(source.KindPod, namespace, func(o source.Object) bool {
		pod, ok := o.(*source.Pod)
		return ok && reachable(pod) && s.Matches(pod.Labels)
	}) {
		all = append(all, addresses(o.(*source.Pod).IPs)...)
	}
	return all
}
