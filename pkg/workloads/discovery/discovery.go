// Package discovery fills a workloads.Store from the control plane: it is the
// proxies' side of the workload API.
//
//	xds.Client ── Resource ──▶ Addresses, Policies ── Update ──▶ workloads.Store
//	                                  └─ Rejected, by name, while the rest takes effect
//
// The subscriptions are for one xds.Client each.
package discovery

import (
	"runtime"

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
		store.Apply(workloads.Update{Removed: removed})
		return applyAddresses(store, added)
	}}
}

const (
	// batch is how many workloads become known at once: each copies a part of every
	// index, so that more would keep the processor from connections for too long;
	// fewer would copy the endpoints of large services too often.
	batch = 16
	// breath is how many are decoded without letting others run, about a tenth of a
	// millisecond's worth.
	breath = 8
)

// applyAddresses decodes in small steps and applies in batches, so that a burst of
// changes, or everything at the start, does not hold up connections. Services come
// last: who finds a new one finds its endpoints too.
func applyAddresses(store *workloads.Store, added []xds.Resource) (rejected []xds.Rejected) {
	var update workloads.Update
	var services []*mesh.Service
	for i, r := range added {
		w, svc, err := decodeAddress(r)
		switch {
		case err != nil:
			rejected = append(rejected, xds.Rejected{Name: r.Name, Err: err})
		case w != nil:
			update.Workloads = append(update.Workloads, w)
		default:
			services = append(services, svc)
		}
		if len(update.Workloads) == batch {
			store.Apply(update)
			update.Workloads = update.Workloads[:0:0]
		}
		if i%breath == breath-1 {
			runtime.Gosched()
		}
	}
	update.Services = services
	store.Apply(update)
	return rejected
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
