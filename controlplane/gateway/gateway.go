// Package gateway turns Gateways into what runs them, waypoints: a Deployment of
// waypoint pods, the Service in front of them, their ServiceAccount, and what a
// ConfigMap of parameters adds to that.
//
//	Gateway shop/waypoint (class istio-waypoint)   GatewayClass   ConfigMaps   what is there already
//	   └──────────────────────────┬───────────────────────┴────────────┴──────────────┘
//	                              │ MakePlan, pure
//	                              ▼
//	ServiceAccount · Service :15021 :15008 · Deployment [· HorizontalPodAutoscaler] [· PodDisruptionBudget]
//	and what is to be removed, and the status: Accepted, Programmed, listeners, addresses
//
// A Controller does that for an API server: it watches what a plan depends on,
// applies the plan on the server's side under the name of the GatewayClass's
// controller, and writes the status. Only the replica that leads runs one. On one
// machine there is none, and Render makes the plain objects.
//
// Names, labels and ports are those that Istio's gateway controller gives, so
// that dashboards and policies find what they expect.
//
// MakePlan, Render and all that they call are pure and safe for concurrent use; a
// Controller is run once at a time.
package gateway
