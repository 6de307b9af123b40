// Package ca is the wire form of certificate signing: the gRPC service
// istio.v1.auth.IstioCertificateService.
//
//	node proxy ── csr, validity, {"ImpersonatedIdentity": uri} ──► CA
//	           ◄─ [leaf, intermediate …, roots] ─────────────────
//
// The messages and the service are generated from ca.proto.
package ca

// ImpersonatedIdentity is the key of the request's metadata under which a node
// proxy names the SPIFFE URI of the pod for which it asks.
const ImpersonatedIdentity = "ImpersonatedIdentity"
