// Package ca is the certificate service of the control plane: it decides who may
// have a certificate for which identity and has it signed.
//
//	CreateCertificate ─▶ who calls?      bearer token ─▶ Authenticator
//	                  ─▶ for whom?       itself, or ImpersonatedIdentity
//	                  ─▶ may it?         a trusted node account, for a pod on its own node
//	                  ─▶ sign            Signer; names in the request are ignored
//	                  ─▶ one audit line, one counter
//
// A Server is safe for concurrent use.
package ca

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/culvert-mesh/culvert/pkg/certs/selfsigned"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/token"
	"github.com/culvert-mesh/culvert/pkg/wire/ca"
)

// Authenticator says to whom a bearer token belongs. *token.Verifier is one.
type Authenticator interface {
	Authenticate(ctx context.Context, bearer string) (*token.Claims, error)
}

// Signer signs certificate requests. *selfsigned.Authority is one.
type Signer interface {
	// SignCSR signs a PEM request for id. The result is PEM: leaf, intermediates,
	// and last all roots. Errors that are the request's fault wrap selfsigned.ErrCSR.
	SignCSR(csrPEM []byte, id mesh.Identity, ttl time.Duration) ([]string, error)
}

// NodeRule says what runs where.
type NodeRule interface {
	// Runs reports whether a pod of that service account, not failed, is on node.
	Runs(node, namespace, serviceAccount string) bool
}

// PodRule says which pods there are. A NodeRule that comes from an API server is one.
type PodRule interface {
	// Pod returns what is known of a pod that has not ended.
	Pod(namespace, name string) (uid, serviceAccount, node string, ok bool)
}

// Defaults of Config.
const (
	DefaultTTL = 24 * time.Hour
	MaxTTL     = 90 * 24 * time.Hour
)

// DefaultNodeAccounts are the service accounts of node proxies.
func DefaultNodeAccounts() []string {
	return []string{"culvert-system/ztunnel", "istio-system/ztunnel"}
}

// maxCSR is far above any real request.
const maxCSR = 64 << 10

// Config configures a Server.
type Config struct {
	Auth                Authenticator
	Signer              Signer
	Rule                NodeRule        // nil = nobody may impersonate
	Pods                PodRule         // nil = a token's own word counts for the node that its pod is on
	Lag                 time.Duration   // how long to wait until Rule and Pods know what allows a request
	Ready               <-chan struct{} // closed when Rule and Pods know the mesh; nil = they do
	TrustDomain         string          // of the mesh; "" = cluster.local
	TrustedNodeAccounts []string        // "namespace/account" that may impersonate; nil = DefaultNodeAccounts
	DefaultTTL, MaxTTL  time.Duration   // 0 = the constants of the same name
	Log                 *slog.Logger    // nil = none
	Metrics             prometheus.Registerer
}

// Server answers certificate requests.
type Server struct {
	ca.UnimplementedIstioCertificateServiceServer
	cfg     Config
	metrics *counters
}

// New returns a server.
func New(cfg Config) *Server {
	if cfg.TrustDomain == "" {
		cfg.TrustDomain = mesh.DefaultTrustDomain
	}
	if cfg.TrustedNodeAccounts == nil {
		cfg.TrustedNodeAccounts = DefaultNodeAccounts()
	}
	if cfg.DefaultTTL == 0 {
		cfg.DefaultTTL = DefaultTTL
	}
	if cfg.MaxTTL == 0 {
		cfg.MaxTTL = MaxTTL
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{cfg: cfg, metrics: newCounters(cfg.Metrics)}
}

// Register adds the service to a gRPC server.
func (s *Server) Register(r grpc.ServiceRegistrar) { ca.RegisterIstioCertificateServiceServer(r, s) }

// decision is what one request came to; it becomes an audit line.
type decision struct {
	caller   *token.Claims // nil when not authenticated
	identity mesh.Identity // zero until known
	ttl      time.Duration
	err      error // the whole reason, for the log only
}

// CreateCertificate implements the service. Callers are told no more than
// upstream's texts; the reason is in the audit line.
func (s *Server) CreateCertificate(ctx context.Context, req *ca.IstioCertificateRequest) (*ca.IstioCertificateResponse, error) {
	s.metrics.requests.Inc()
	var d decision
	chain, err := s.decide(ctx, req, &d)
	s.audit(ctx, &d)
	if err != nil {
		return nil, err
	}
	s.metrics.issued.Inc()
	return &ca.IstioCertificateResponse{CertChain: chain}, nil
}

func (s *Server) decide(ctx context.Context, req *ca.IstioCertificateRequest, d *decision) ([]string, error) {
	if d.caller, d.err = s.authenticate(ctx); d.err != nil {
		s.metrics.unauthenticated.Inc()
		return nil, status.Error(codes.Unauthenticated, "request authenticate failure")
	}
	if d.err = s.ready(ctx); d.err != nil {
		return nil, status.Error(codes.Unavailable, "the control plane is starting")
	}
	if d.identity, d.err = s.authorize(ctx, d.caller, req); d.err != nil {
		s.metrics.unauthenticated.Inc()
		return nil, status.Error(codes.Unauthenticated, "request impersonation authentication failure")
	}
	if d.ttl, d.err = s.validity(req.GetValidityDuration()); d.err != nil {
		return nil, status.Error(codes.InvalidArgument, d.err.Error())
	}
	var chain []string
	if chain, d.err = s.sign(req.GetCsr(), d.identity, d.ttl); d.err == nil {
		return chain, nil
	}
	if errors.Is(d.err, selfsigned.ErrNoKey) {
		s.metrics.signErrors.Inc()
		return nil, status.Error(codes.Unavailable, "the certificate authority is not ready")
	}
	if errors.Is(d.err, selfsigned.ErrCSR) {
		s.metrics.badRequests.Inc()
		return nil, status.Errorf(codes.InvalidArgument, "CSR signing error (%v)", d.err)
	}
	s.metrics.signErrors.Inc()
	return nil, status.Error(codes.Internal, "CSR signing error")
}

// authenticate finds out who calls.
func (s *Server) authenticate(ctx context.Context) (*token.Claims, error) {
	const scheme = "bearer "
	for _, value := range metadata.ValueFromIncomingContext(ctx, "authorization") {
		if len(value) > len(scheme) && strings.EqualFold(value[:len(scheme)], scheme) {
			return s.cfg.Auth.Authenticate(ctx, value[len(scheme):])
		}
	}
	return nil, errors.New("no bearer token")
}

// authorize decides the identity of the certificate: the caller's own unless it
// names another and may.
func (s *Server) authorize(ctx context.Context, caller *token.Claims, req *ca.IstioCertificateRequest) (mesh.Identity, error) {
	own := mesh.Identity{TrustDomain: s.cfg.TrustDomain, Namespace: caller.Namespace, ServiceAccount: caller.ServiceAccount.Name}
	wanted := req.GetMetadata().GetFields()[ca.ImpersonatedIdentity].GetStringValue()
	if wanted == "" {
		return own, nil
	}
	id, err := mesh.ParseIdentity(wanted)
	if err != nil || id == own {
		return id, err
	}
	switch {
	case id.TrustDomain != s.cfg.TrustDomain:
		return id, fmt.Errorf("trust domain is not %s", s.cfg.TrustDomain)
	case !slices.Contains(s.cfg.TrustedNodeAccounts, caller.Account()):
		return id, errors.New("caller is no trusted node account")
	}
	for wait := newLag(s.cfg.Lag); ; {
		if err = s.onNode(caller, id); err == nil || !wait.more(ctx) {
			return id, err
		}
	}
}

// validity checks the requested validity, in seconds; 0 is the default.
func (s *Server) validity(seconds int64) (time.Duration, error) {
	switch {
	case seconds == 0:
		return s.cfg.DefaultTTL, nil
	case seconds < int64(selfsigned.MinTTL/time.Second):
		return 0, fmt.Errorf("requested TTL of %d s is less than the minimum of %s", seconds, selfsigned.MinTTL)
	case seconds > int64(s.cfg.MaxTTL/time.Second):
		return 0, fmt.Errorf("requested TTL of %d s is greater than the max allowed TTL %s", seconds, s.cfg.MaxTTL)
	}
	return time.Duration(seconds) * time.Second, nil
}

func (s *Server) sign(csr string, id mesh.Identity, ttl time.Duration) ([]string, error) {
	if len(csr) > maxCSR {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are accepted", selfsigned.ErrCSR, len(csr), maxCSR)
	}
	return s.cfg.Signer.SignCSR([]byte(csr), id, ttl)
}

// audit writes one line per decision.
func (s *Server) audit(ctx context.Context, d *decision) {
	attrs := []slog.Attr{slog.String("identity", d.identity.String())}
	if p, ok := peer.FromContext(ctx); ok {
		attrs = append(attrs, slog.String("address", p.Addr.String()))
	}
	if c := d.caller; c != nil {
		attrs = append(attrs, slog.String("caller", c.Account()), slog.String("pod", c.Pod.Name), slog.String("node", c.Node.Name))
	}
	if d.err != nil {
		attrs = append(attrs, slog.Any("error", d.err))
		s.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "certificate refused", attrs...)
		return
	}
	attrs = append(attrs, slog.Duration("ttl", d.ttl))
	s.cfg.Log.LogAttrs(ctx, slog.LevelInfo, "certificate signed", attrs...)
}
