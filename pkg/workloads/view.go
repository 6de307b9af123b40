// Package workloads is what a proxy knows about the mesh: workloads, services and
// policies, found by address, by name, by host.
//
//	xDS ── Apply(Update) ──► Store ──► View   lookups of the hot path
//	                           │
//	                           ├─ Changed, PolicyChanged   re-check live connections
//	                           ├─ Wait                     until something is known
//	                           └─ Dump                     admin
//
//	index            shard 0          shard 1         …  shard 1023
//	by UID       [·|w|·|w|w|·|·|w]  [·|·|w|·]
//	by address   [w|·|·|w]          [·|w|w|·]             one pod's change copies
//	by VIP       [·|s]              …                     one small array per index
//
// Every index is a fixed number of shards; a shard is a small immutable hash
// table of pointers that a writer replaces as a whole. Lookups take no lock and
// allocate nothing. They may run concurrently with each other and with Apply;
// each lookup by itself sees one state of its shard, two lookups may see an Apply
// between them. Values that a View returns must not be modified.
package workloads

import "github.com/culvert-mesh/culvert/pkg/mesh"

// View is the lookups that routing and policy decisions are made of.
type View interface {
	// Workload returns the workload with that UID, or nil.
	Workload(uid mesh.UID) *mesh.Workload
	// WorkloadByAddr returns the workload that owns the address, or nil. Workloads
	// on their host's network own none. Of several, a pod is preferred, then one
	// that speaks HBONE, then the smallest UID.
	WorkloadByAddr(addr mesh.NetAddr) *mesh.Workload
	// WorkloadByInfo returns the workload of a local pod, or nil. node is where it
	// must run; "" is anywhere.
	WorkloadByInfo(info mesh.PodInfo, node string) *mesh.Workload
	// WorkloadByHost returns the workload with that namespace and hostname, or nil.
	WorkloadByHost(name mesh.ServiceName) *mesh.Workload

	// Service returns the service with that name, or nil.
	Service(name mesh.ServiceName) *mesh.Service
	// ServicesByHost returns all services with that hostname, oldest first.
	ServicesByHost(host string) []*mesh.Service
	// ServiceByVIP returns the service that a client in namespace clientNS reaches
	// at the address, or nil. Of several, one of the client's own namespace is
	// preferred, then the canonical one, then the oldest. A range is consulted when
	// no service has the address itself: the client's own namespace first, then the
	// longest prefix, then the canonical one, then the oldest.
	ServiceByVIP(addr mesh.NetAddr, clientNS string) *mesh.Service
	// Endpoints returns all endpoints of the service by UID, healthy or not, also
	// when the service itself is not known (yet).
	Endpoints(name mesh.ServiceName) []Endpoint

	// Policy returns the policy with that name, or nil.
	Policy(name mesh.PolicyName) *mesh.Policy
	// PoliciesFor returns the policies that apply to the workload: global ones,
	// those of its namespace, and those that it names; and the named ones that have
	// not been received.
	PoliciesFor(w *mesh.Workload) (policies []*mesh.Policy, missing []mesh.PolicyName)
}

// Endpoint is one workload of a service.
type Endpoint struct {
	Workload *mesh.Workload
	Ports    []mesh.Port // the workload's own mapping of the service's ports
}

// Update is one batch of changes. Everything removed is removed before anything
// is added. The store takes ownership of the values: nobody else may use them
// until Apply has returned, and nobody may modify them afterwards.
type Update struct {
	Workloads []*mesh.Workload
	Services  []*mesh.Service
	Policies  []*mesh.Policy

	RemovedWorkloads []mesh.UID
	RemovedServices  []mesh.ServiceName
	RemovedPolicies  []mesh.PolicyName
	// Removed are resource names of the workload API that may mean a workload (by
	// UID) or a service ("namespace/hostname"); both are tried.
	Removed []string
}

// Change says what an Apply changed. It is shared by all subscribers and must not
// be modified.
type Change struct {
	Workloads        []*mesh.Workload // added or replaced
	RemovedWorkloads []*mesh.Workload // as they were
	Services         []*mesh.Service
	RemovedServices  []*mesh.Service
	Policies         []*mesh.Policy
	RemovedPolicies  []*mesh.Policy
	// PolicyVersion is the store's after the change.
	PolicyVersion uint64
}
