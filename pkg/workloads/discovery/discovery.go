// Package discovery fills a workloads.Store from the control plane: it is the
// proxies' side of the workload API.
//
//	xds.Client ── Resource ──▶ Addresses, Policies ── Update ──▶ workloads.Store
//	                                  └─ Rejected, by name, while the rest takes effect
//
// The subscriptions are for one xds.Client each.
package discovery

import (
	"google.golang.org/protobuf/proto"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/wire/authz"
	"github.com/culvert-mesh/culvert/pkg/wire/workload"
	"github.com/culvert-mesh/culvert/pkg/workloads"
	"github.com/culvert-mesh/culvert/pkg/xds"
)

// Addresses subscribes a store to all workloads and services.
func Addresses(store *workloads.Store) xds.Subscription {
	return xds.Subscription{TypeURL: workload.TypeURL, Wildcard: true, Handle: func(added []xds.Resource, removed []string) []xds.Rejected {
		update := workloads.Update{Removed: removed}
		var rejected []xds.Rejected
		for _, r := range added {
			w, svc, err := decodeAddress(r)
			switch {
			case err != nil:
				rejected = append(rejected, xds.Rejected{Name: r.Name, Err: err})
			case w != nil:
				update.Workloads = append(update.Workloads, w)
			default:
				update.Services = append(update.Services, svc)
			}
		}
		store.Apply(update)
		return rejected
	}}
}

func decodeAddress(r xds.Resource) (*mesh.Workload, *mesh.Service, error) {
	var m workload.Address
	if err := proto.Unmarshal(r.Body.GetValue(), &m); err != nil {
		return nil, nil, err
	}
	return workload.ToMesh(&m)
}

// Policies subscribes a store to all L4 policies. malformed, unless nil, is told of
// addresses that a policy has lost because they are none; the rest of it is in force.
func Policies(store *workloads.Store, malformed func(name mesh.PolicyName, addresses []string)) xds.Subscription {
	return xds.Subscription{TypeURL: authz.TypeURL, Wildcard: true, Handle: func(added []xds.Resource, removed []string) []xds.Rejected {
		var update workloads.Update
		var rejected []xds.Rejected
		for _, r := range added {
			p, lost, err := decodePolicy(r)
			if err != nil {
				rejected = append(rejected, xds.Rejected{Name: r.Name, Err: err})
				continue
			}
			if len(lost) > 0 && malformed != nil {
				malformed(p.Name, lost)
			}
			update.Policies = append(update.Policies, p)
		}
		for _, name := range removed {
			if n, err := mesh.ParsePolicyName(name); err == nil {
				update.RemovedPolicies = append(update.RemovedPolicies, n)
			}
		}
		store.Apply(update)
		return rejected
	}}
}

func decodePolicy(r xds.Resource) (p *mesh.Policy, lost []string, err error) {
	var m authz.Authorization
	if err := proto.Unmarshal(r.Body.GetValue(), &m); err != nil {
		return nil, nil, err
	}
	p, err = authz.ToMesh(&m)
	return p, authz.Malformed(&m), err
}
