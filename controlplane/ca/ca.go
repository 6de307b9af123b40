// Package ca is the certificate service of the control plane.
package ca

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/token"
)

// Authenticator says who a bearer token belongs to. *token.Verifier is one.
type Authenticator interface {
	Authenticate(ctx context.Context, bearer string) (*token.Claims, error)
}

// Signer signs certificate requests. *selfsigned.Authority is one.
type Signer interface {
	SignCSR(csrPEM []byte, id mesh.Identity, ttl time.Duration) ([]string, error)
}

// NodeRule says what runs where.
type NodeRule interface {
	// Runs reports whether a pod of that service account, not failed, is on node.
	Runs(node, namespace, serviceAccount string) bool
}

// Config configures a Server.
type Config struct {
	Auth                Authenticator
	Signer              Signer
	Rule                NodeRule
	TrustDomain         string        // of the mesh; "" = cluster.local
	TrustedNodeAccounts []string      // "namespace/account" that may impersonate; nil = culvert-system/ztunnel, istio-system/ztunnel
	DefaultTTL, MaxTTL  time.Duration // 0 = 24 h, 90 d
	Log                 *slog.Logger
	Metrics             prometheus.Registerer // nil = none
}

// Server answers certificate requests.
type Server struct{}

// New returns a server.
func New(cfg Config) *Server { panic("skeleton") }

// Register adds the service to a gRPC server.
func (s *Server) Register(r grpc.ServiceRegistrar) { panic("skeleton") }
