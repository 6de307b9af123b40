package cluster

import (
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/culvert-mesh/culvert/cli/laptop/dns"
	"github.com/culvert-mesh/culvert/cli/laptop/fabric"
	"github.com/culvert-mesh/culvert/cli/laptop/vips"
	"github.com/culvert-mesh/culvert/controlplane/gateway"
)

// rendered is what a Gateway of a waypoint class turned into.
type rendered struct {
	gateway Name
	objects *gateway.Objects
}

// XDSAddress is where the waypoints of the cluster find its control plane.
var XDSAddress = netip.AddrPortFrom(fabric.ControlPlane4, 15012).String()

// render turns the Gateways of waypoint classes into what runs them.
func (c *Cluster) render() {
	c.rendered = map[Name]*rendered{}
	for _, name := range sorted(c.objects.Gateways) {
		gw := c.objects.Gateways[name]
		class := string(gw.Spec.GatewayClassName)
		if !gateway.Managed(class) {
			continue
		}
		objs, err := gateway.Render(gatewayOf(name, gw), gateway.Options{XDSAddress: XDSAddress})
		if err != nil {
			c.problem("%v", err)
			continue
		}
		c.rendered[name] = &rendered{name, objs}
	}
}

func gatewayOf(name Name, gw *gatewayv1.Gateway) gateway.Gateway {
	g := gateway.Gateway{Namespace: name.Namespace, Name: name.Name, UID: string(gw.UID), Class: string(gw.Spec.GatewayClassName)}
	if infra := gw.Spec.Infrastructure; infra != nil {
		g.Labels, g.Annotations = map[string]string{}, map[string]string{}
		for k, v := range infra.Labels {
			g.Labels[string(k)] = string(v)
		}
		for k, v := range infra.Annotations {
			g.Annotations[string(k)] = string(v)
		}
	}
	for _, l := range gw.Spec.Listeners {
		g.Listeners = append(g.Listeners, gateway.Listener{Name: string(l.Name), Port: uint16(l.Port), Protocol: string(l.Protocol)})
	}
	return g
}

// services returns the user's Services and those of Gateways.
func (c *Cluster) services() map[Name]*corev1.Service {
	all := make(map[Name]*corev1.Service, len(c.objects.Services)+len(c.rendered))
	for n, s := range c.objects.Services {
		all[n] = s
	}
	for n, r := range c.rendered {
		all[n] = r.objects.Service
	}
	return all
}

// allocate gives every service that wants virtual addresses a number, and takes
// the numbers of services that left back.
func (c *Cluster) allocate() {
	all := c.services()
	used := map[int]bool{}
	for n, number := range c.vips {
		if all[n] == nil {
			delete(c.vips, n)
			continue
		}
		used[number] = true
	}
	for _, n := range sorted(all) {
		if _, ok := c.vips[n]; ok || !wantsVIP(all[n]) {
			continue
		}
		for used[c.nextVIP] {
			c.nextVIP++
		}
		c.vips[n] = c.nextVIP
		used[c.nextVIP] = true
		if c.nextVIP++; c.nextVIP >= 1<<16-1 {
			c.nextVIP = firstVIP
		}
	}
}

func wantsVIP(s *corev1.Service) bool {
	return s.Spec.ClusterIP == "" && s.Spec.Type != corev1.ServiceTypeExternalName
}

// addrs returns a service's virtual addresses: those that it asks for, or its own.
func (c *Cluster) addrs(n Name, s *corev1.Service) (out []netip.Addr) {
	if number, ok := c.vips[n]; ok && wantsVIP(s) {
		return fabric.ServiceAddrs(number).Slice()
	}
	asked := s.Spec.ClusterIPs
	if len(asked) == 0 {
		asked = []string{s.Spec.ClusterIP}
	}
	for _, text := range asked {
		a, err := netip.ParseAddr(text)
		if err != nil {
			continue // None
		}
		if !fabric.Services4.Contains(a) && !fabric.Services6.Contains(a) {
			c.problem("service %s: clusterIP %s is outside %s and %s", n, a, fabric.Services4, fabric.Services6)
			continue
		}
		out = append(out, a)
	}
	return out
}

// endpoints returns the pods behind a service: the ready ones, or all that run
// when it asks for that.
func (c *Cluster) endpoints(n Name, s *corev1.Service) (pods []*Pod) {
	if len(s.Spec.Selector) == 0 {
		return nil
	}
	for _, p := range c.Pods() {
		serves := p.status.Ready && !p.Stopping || s.Spec.PublishNotReadyAddresses && p.status.Running
		if p.Name.Namespace == n.Namespace && serves && selects(s.Spec.Selector, p.Object.Labels) {
			pods = append(pods, p)
		}
	}
	return pods
}

func selects(selector, labels map[string]string) bool {
	for k, v := range selector {
		if labels[k] != v {
			return false
		}
	}
	return true
}

// targetPort returns the port of pod p that a service's port leads to, 0 for none.
func targetPort(port corev1.ServicePort, p *corev1.Pod) uint16 {
	target := port.TargetPort
	if target.Type == intstr.Int {
		if target.IntVal == 0 {
			return uint16(port.Port)
		}
		return uint16(target.IntVal)
	}
	for _, ctr := range p.Spec.Containers {
		for _, cp := range ctr.Ports {
			if cp.Name == target.StrVal {
				return uint16(cp.ContainerPort)
			}
		}
	}
	return 0
}

// VIPs returns the rules that make virtual addresses work on a node.
func (c *Cluster) VIPs() vips.Ruleset {
	r := vips.Ruleset{Ranges: []netip.Prefix{fabric.Services4, fabric.Services6}}
	all := c.services()
	for _, n := range sorted(all) {
		s := all[n]
		pods := c.endpoints(n, s)
		for _, addr := range c.addrs(n, s) {
			for _, port := range s.Spec.Ports {
				r.Services = append(r.Services, vip(n, addr, port, pods))
			}
		}
	}
	return r.Normal()
}

func vip(n Name, addr netip.Addr, port corev1.ServicePort, pods []*Pod) vips.Service {
	v := vips.Service{Name: n.String(), Addr: netip.AddrPortFrom(addr, uint16(port.Port)), Protocol: vips.TCP}
	if port.Protocol == corev1.ProtocolUDP {
		v.Protocol = vips.UDP
	}
	for _, p := range pods {
		target := targetPort(port, p.Object)
		if target == 0 {
			continue
		}
		a := p.Addrs.V4
		if addr.Is6() {
			a = p.Addrs.V6
		}
		v.Endpoints = append(v.Endpoints, netip.AddrPortFrom(a, target))
	}
	return v
}

// Zone returns the cluster's names.
func (c *Cluster) Zone(domain string) *dns.Zone {
	all := c.services()
	var list []dns.Service
	for _, n := range sorted(all) {
		s := all[n]
		d := dns.Service{Namespace: n.Namespace, Name: n.Name, Addrs: c.addrs(n, s)}
		for _, p := range s.Spec.Ports {
			proto := strings.ToLower(string(p.Protocol))
			if proto == "" {
				proto = "tcp"
			}
			d.Ports = append(d.Ports, dns.Port{Name: p.Name, Protocol: proto, Number: uint16(p.Port)})
		}
		if len(d.Addrs) == 0 {
			for _, p := range c.endpoints(n, s) {
				e := dns.Endpoint{Addrs: p.Addrs.Slice()}
				if p.Object.Spec.Subdomain == n.Name {
					e.Hostname = p.Object.Spec.Hostname
				}
				d.Endpoints = append(d.Endpoints, e)
			}
		}
		list = append(list, d)
	}
	return dns.NewZone(domain, list)
}

// Service is a service as it is now, for people.
type Service struct {
	Name      Name
	Addrs     []netip.Addr
	Ports     []int32
	Endpoints int // ready ones
}

// Services returns all services, by name.
func (c *Cluster) Services() (out []Service) {
	all := c.services()
	for _, n := range sorted(all) {
		s := Service{Name: n, Addrs: c.addrs(n, all[n]), Endpoints: len(c.endpoints(n, all[n]))}
		for _, p := range all[n].Spec.Ports {
			s.Ports = append(s.Ports, p.Port)
		}
		out = append(out, s)
	}
	return out
}
