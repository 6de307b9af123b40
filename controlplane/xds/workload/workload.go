// Package workload turns results into the resources that ztunnels read, and
// waypoints for their endpoints: Address and Authorization.
//
//	mesh.Workload ─► Address       "Kubernetes//Pod/shop/cart-7c9f", aliases network/IP
//	mesh.Service  ─► Address       "shop/cart.shop.svc.cluster.local", aliases network/VIP
//	mesh.Policy   ─► Authorization "shop/only-frontend"
//
// Pure functions, safe for concurrent use.
package workload

import (
	"github.com/culvert-mesh/culvert/controlplane/compile"
	"github.com/culvert-mesh/culvert/controlplane/xds"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	authzpb "github.com/culvert-mesh/culvert/pkg/wire/authz"
	workloadpb "github.com/culvert-mesh/culvert/pkg/wire/workload"
)

// Resources returns the resources of one result.
func Resources(out compile.Output) []xds.Resource {
	var list []xds.Resource
	for _, w := range out.Workloads {
		m := &workloadpb.Address{Type: &workloadpb.Address_Workload{Workload: workloadpb.FromWorkload(w)}}
		r := xds.NewResource(string(w.UID), m, workloadAliases(w), "")
		r.Groups = groups(w)
		list = append(list, r)
	}
	for _, s := range out.Services {
		m := &workloadpb.Address{Type: &workloadpb.Address_Service{Service: workloadpb.FromService(s)}}
		r := xds.NewResource(s.Key().String(), m, serviceAliases(s), "")
		r.Group = r.Name.Name
		list = append(list, r)
	}
	for _, p := range out.Policies {
		list = append(list, xds.NewResource(p.Name.String(), authzpb.FromMesh(p), nil, ""))
	}
	return list
}

// workloadAliases are the addresses by which the workload is found; a pod on its
// node's network is not found by the node's address.
func workloadAliases(w *mesh.Workload) []string {
	if w.NetworkMode == mesh.NetworkHost {
		return nil
	}
	out := make([]string, len(w.Addresses))
	for i, a := range w.Addresses {
		out[i] = mesh.NetAddr{Network: w.Network, Addr: a}.String()
	}
	return out
}

// groups are what a workload comes along with for those who do not ask for
// everything: the services that it is an endpoint of, and its node.
func groups(w *mesh.Workload) []string {
	out := make([]string, 0, len(w.Services)+1)
	for _, s := range w.Services {
		out = append(out, s.Service.String())
	}
	if w.Node != "" {
		out = append(out, xds.NodeGroup(w.Node))
	}
	return out
}

func serviceAliases(s *mesh.Service) []string {
	out := make([]string, len(s.VIPs))
	for i, v := range s.VIPs {
		out[i] = v.String()
	}
	return out
}
