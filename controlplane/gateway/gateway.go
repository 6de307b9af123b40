// Package gateway turns a Gateway into the objects that run it: a Deployment of
// waypoint pods, the Service in front of them and their ServiceAccount.
//
//	Gateway shop/waypoint (class istio-waypoint)
//	   │ Render, pure
//	   ▼
//	ServiceAccount shop/waypoint · Deployment shop/waypoint · Service shop/waypoint :15021 :15008
//
// Names, labels and ports are those that Istio's gateway controller gives, so
// that dashboards and policies find what they expect.
//
// Everything here is a pure function, safe for concurrent use.
package gateway
