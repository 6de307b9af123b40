// Package workload is the wire form of workload discovery and its conversion to
// mesh.Workload and mesh.Service.
//
//	istio.workload.Address ── ToMesh ──► mesh.Workload or mesh.Service
//	                       ◄─ FromWorkload, FromService ─
//
// The messages are generated from workload.proto. Conversions are pure and safe
// for concurrent use. Defaults that the wire leaves out (trust domain, service
// account, cluster, capacity) are filled in by ToMesh, so that the rest of the
// program never sees an empty one.
package workload

// TypeURL names Address resources on the wire.
const TypeURL = "type.googleapis.com/istio.workload.Address"
