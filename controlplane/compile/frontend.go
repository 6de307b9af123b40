package compile

import (
	"slices"
	"strings"

	"github.com/culvert-mesh/culvert/controlplane/source"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

// groupNetworking is the API group of ServiceEntry.
const groupNetworking = "networking.istio.io"

// frontend is what clients address, and what routes, policies and a waypoint are
// attached to: a Service, or a ServiceEntry with all its hosts.
type frontend struct {
	object source.Object
	ports  []source.ServicePort // TCP only
}

func (f frontend) key() source.Key    { return f.object.Key() }
func (f frontend) meta() *source.Meta { return f.object.Metadata() }

func serviceFrontend(s *source.Service) frontend {
	return frontend{s, slices.DeleteFunc(slices.Clone(s.Ports), func(p source.ServicePort) bool { return p.Protocol != "TCP" })}
}

func entryFrontend(e *source.ServiceEntry) frontend {
	f := frontend{object: e}
	for _, p := range e.Spec.GetPorts() {
		f.ports = append(f.ports, source.ServicePort{
			Name: p.GetName(), Port: int32(p.GetNumber()), TargetPort: int32(p.GetTargetPort()),
			Protocol: "TCP", AppProtocol: strings.ToLower(p.GetProtocol()),
		})
	}
	return f
}

// frontendAt returns the Service or ServiceEntry of that key.
func (c *compilation) frontendAt(key source.Key) (frontend, bool) {
	switch o := c.view.Get(key).(type) {
	case *source.Service:
		return serviceFrontend(o), true
	case *source.ServiceEntry:
		return entryFrontend(o), true
	}
	return frontend{}, false
}

// attachments are what a frontend is to be served with, the same for all its hosts.
type attachments struct {
	frontend
	waypoint *waypoint  // nil without one
	chosen   source.Key // the Gateway that labels choose, which may not be there
	policies []*source.AuthorizationPolicy
	routes   []*route
}

func (c *compilation) attachments(f frontend) *attachments {
	a := &attachments{frontend: f}
	a.waypoint, a.chosen = c.serviceWaypoint(f)
	a.policies = c.frontendPolicies(f)
	if a.waypoint != nil {
		a.policies = append(a.policies, c.gatewayPolicies(a.waypoint.object)...)
		a.routes = c.routesOf(f)
	}
	return a
}

// bind takes the service's traffic through its waypoint. While that has no address,
// or is not there at all, the traffic goes directly, unless policies are to be
// enforced there: then clients are pointed at it anyway, and refused until it comes.
func (c *compilation) bind(a *attachments, out *mesh.Service) {
	switch {
	case a.chosen.Name == "":
	case len(out.VIPs) == 0 && a.waypoint != nil:
		c.retract(WaypointBound)
		c.coded(WaypointBound, CodeUnsupportedTrafficType, reason.Unsupported, addressField(a.object), "without an address of its own it is dialled directly, not through the waypoint")
	case a.waypoint != nil && a.waypoint.gateway != nil:
		out.Waypoint = a.waypoint.gateway
		c.serviceServing(a, out)
	case len(a.policies) > 0:
		out.Waypoint = &mesh.Gateway{Service: mesh.ServiceName{Namespace: a.chosen.Namespace, Hostname: c.mesh.hostname(a.chosen.Namespace, a.chosen.Name)}, HBONEPort: mesh.PortHBONE}
		c.bad(WaypointBound, reason.NoWaypoint, useWaypointField, "clients are refused until the waypoint serves it, because it enforces policies")
	}
}

func addressField(o source.Object) string {
	if o.Key().Kind == source.KindService {
		return "spec.clusterIP"
	}
	return "spec.addresses"
}
