package compile

import (
	"slices"

	"github.com/culvert-mesh/culvert/controlplane/source"
)

// byHostname returns the frontend that has a hostname, as a client of namespace
// would find it: a Service, else a ServiceEntry of that namespace, else the oldest.
func (c *compilation) byHostname(host, namespace string) (frontend, bool) {
	if name, ns, ok := c.mesh.serviceOf(host); ok {
		if s, ok := c.view.Get(source.Key{Kind: source.KindService, Namespace: ns, Name: name}).(*source.Service); ok && s.Type != "ExternalName" {
			return serviceFrontend(s), true
		}
	}
	var best *source.ServiceEntry
	for _, o := range c.view.List(source.KindServiceEntry, "", func(o source.Object) bool {
		e, ok := o.(*source.ServiceEntry)
		return ok && slices.Contains(e.Spec.GetHosts(), host)
	}) {
		e := o.(*source.ServiceEntry)
		if best == nil || boolCompare(e.Namespace == namespace, best.Namespace == namespace) < 0 ||
			(e.Namespace == namespace) == (best.Namespace == namespace) && e.Older(&best.Meta) {
			best = e
		}
	}
	if best == nil {
		return frontend{}, false
	}
	return entryFrontend(best), true
}
