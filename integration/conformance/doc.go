// Package conformance runs Gateway API's own conformance suite on a cluster with
// the mesh, as anybody would who installed it: the suite's namespaces are labelled
// to be in the mesh and to use a waypoint, and nothing else is done for them.
//
//	suite ──exec──▶ echo-v1 ──▶ ztunnel ──▶ waypoint ──▶ ztunnel ──▶ echo-v2
//	  └─ HTTPRoutes of the test ─▶ API server ─▶ control plane ─┘
//
// It is a module of its own, for the suite has many dependencies. What the suite's
// manifests run as echo-advanced is built here, in echo. `make conformance` does
// all of it on a cluster of its own and writes the report into docs/conformance.
package conformance
