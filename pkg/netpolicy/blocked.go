package netpolicy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// Finding is a pod of the mesh whose policies let others through to its ports (or,
// for Egress, let it through to those of others), but not to the tunnel's port.
type Finding struct {
	Pod       string // "namespace/name"
	Direction Direction
	Policies  []string // those that isolate it, "namespace/name"
	Ports     []uint16 // that are allowed, and do not help
	Peers     []string // who is cut off: pods of the mesh, "namespace/name"
}

// Message says it in a sentence.
func (f Finding) Message() string {
	who := strings.Join(f.Peers, ", ")
	if len(f.Peers) > 3 {
		who = fmt.Sprintf("%s and %d more", strings.Join(f.Peers[:3], ", "), len(f.Peers)-3)
	}
	ports := "port"
	if len(f.Ports) > 1 {
		ports = "ports"
	}
	for i, p := range f.Ports {
		ports += strings.Repeat(",", min(i, 1)) + fmt.Sprintf(" %d", p)
	}
	policies := strings.Join(f.Policies, ", ")
	if f.Direction == Egress {
		return fmt.Sprintf("NetworkPolicy %s lets pod %s through to %s on %s, but not on %d, by which the mesh goes there", policies, f.Pod, who, ports, mesh.PortHBONE)
	}
	return fmt.Sprintf("NetworkPolicy %s lets %s through to pod %s on %s, but not on %d, by which the mesh comes", policies, who, f.Pod, ports, mesh.PortHBONE)
}

// Fix says what to do about it.
func (f Finding) Fix() string {
	return fmt.Sprintf("add TCP port %d to its %s rules", mesh.PortHBONE, f.Direction)
}

// redirection is what the node agent writes on pods of the mesh.
const redirection = "ambient.istio.io/redirection"

// Blocked returns a finding for each pod of the mesh and direction in which the
// cluster's policies cut pods of the mesh off from one another, in the order of
// names. Ports are those that the called pods' containers and the policies name; a
// pair that no policy would have let through without the mesh is nobody's loss.
//
// Pods alike, of one namespace and with equal labels, ports and place, are looked at
// once: the time goes with the square of the kinds of pods, not of pods.
func Blocked(c Cluster) []Finding {
	kinds := c.kinds()
	var all []Finding
	for _, d := range []Direction{Ingress, Egress} {
		for _, self := range kinds {
			r := c.rulesOf(self.pods[0], d)
			if len(r.isolated) > 0 {
				all = append(all, c.cutOff(d, self, r, kinds)...)
			}
		}
	}
	slices.SortFunc(all, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.Pod, b.Pod), cmp.Compare(a.Direction, b.Direction))
	})
	return all
}

// kind is pods that no policy can tell apart.
type kind struct {
	pods  []*corev1.Pod
	ports []uint16
}

func (c Cluster) kinds() []*kind {
	byKey := map[string]*kind{}
	var order []*kind
	for i := range c.Pods {
		p := &c.Pods[i]
		if !c.inMesh(p) {
			continue
		}
		key := keyOf(p)
		if c.blocks() {
			key += p.Status.PodIP // addresses tell them apart
		}
		k := byKey[key]
		if k == nil {
			k = &kind{ports: portsOf(p)}
			byKey[key] = k
			order = append(order, k)
		}
		k.pods = append(k.pods, p)
	}
	return order
}

func (c Cluster) inMesh(p *corev1.Pod) bool {
	if c.InMesh != nil {
		return c.InMesh(p)
	}
	return p.Annotations[redirection] != ""
}

// blocks reports whether any policy goes by addresses.
func (c Cluster) blocks() bool {
	return slices.ContainsFunc(c.Policies, func(p networkingv1.NetworkPolicy) bool {
		for _, in := range p.Spec.Ingress {
			if slices.ContainsFunc(in.From, hasBlock) {
				return true
			}
		}
		for _, out := range p.Spec.Egress {
			if slices.ContainsFunc(out.To, hasBlock) {
				return true
			}
		}
		return false
	})
}

func hasBlock(p networkingv1.NetworkPolicyPeer) bool { return p.IPBlock != nil }

func keyOf(p *corev1.Pod) string {
	var b strings.Builder
	b.WriteString(p.Namespace)
	for _, key := range slices.Sorted(maps.Keys(p.Labels)) {
		if key == "pod-template-hash" || key == "controller-revision-hash" || key == "statefulset.kubernetes.io/pod-name" || key == "apps.kubernetes.io/pod-index" {
			continue // no policy goes by them, and they would make every pod a kind
		}
		fmt.Fprintf(&b, "\x00%s=%s", key, p.Labels[key])
	}
	for _, ctr := range serving(p) {
		for _, port := range ctr.Ports {
			fmt.Fprintf(&b, "\x01%s/%d/%s", port.Name, port.ContainerPort, port.Protocol)
		}
	}
	return b.String()
}

// portsOf are a pod's own TCP ports.
func portsOf(p *corev1.Pod) (ports []uint16) {
	for _, ctr := range serving(p) {
		for _, cp := range ctr.Ports {
			if (cp.Protocol == "" || cp.Protocol == corev1.ProtocolTCP) && cp.ContainerPort > 0 && cp.ContainerPort != int32(mesh.PortHBONE) {
				ports = append(ports, uint16(cp.ContainerPort))
			}
		}
	}
	return ports
}

// cutOff finds the peers that self's rules let through on some port but not on the
// tunnel's.
func (c Cluster) cutOff(d Direction, self *kind, r rules, kinds []*kind) []Finding {
	one, peers, ports := self.pods[0], []string{}, map[uint16]bool{}
	for _, other := range kinds {
		peer := other.pods[0]
		target, declared := one, self.ports
		if d == Egress {
			target, declared = peer, other.ports
		}
		if r.allow(c, one.Namespace, peer, target, mesh.PortHBONE) {
			continue
		}
		lost := slices.DeleteFunc(append(slices.Clone(declared), r.numbers()...), func(port uint16) bool {
			return !r.allow(c, one.Namespace, peer, target, port)
		})
		if len(lost) == 0 {
			continue
		}
		for _, port := range lost {
			ports[port] = true
		}
		for _, p := range other.pods {
			if p != one || len(self.pods) > 1 {
				peers = append(peers, p.Namespace+"/"+p.Name)
			}
		}
	}
	if len(peers) == 0 {
		return nil
	}
	slices.Sort(peers)
	var all []Finding
	for _, p := range self.pods {
		others := slices.DeleteFunc(slices.Clone(peers), func(name string) bool { return name == p.Namespace+"/"+p.Name })
		if len(others) > 0 {
			all = append(all, Finding{Pod: p.Namespace + "/" + p.Name, Direction: d, Policies: r.isolated, Ports: slices.Sorted(maps.Keys(ports)), Peers: others})
		}
	}
	return all
}

// numbers are the ports that the rules name by number: a container need not declare
// those that it listens on.
func (r rules) numbers() (ports []uint16) {
	for _, u := range r.rules {
		for _, p := range u.ports {
			if p.Port != nil && p.Port.IntVal > 0 && p.Port.IntVal < 1<<16 && p.Port.IntVal != int32(mesh.PortHBONE) {
				ports = append(ports, uint16(p.Port.IntVal))
			}
		}
	}
	return ports
}
