package app

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/culvert-mesh/culvert/controlplane/xds"
	"github.com/culvert-mesh/culvert/pkg/certs/selfsigned"
)

// Limits of the gRPC port.
const (
	maxRequestSize = 64 << 20 // a reconnecting node names all it holds: 200,000 resources
	maxStreams     = 100      // of one connection
	handshakeTime  = 10 * time.Second
	minPing        = 5 * time.Second
	pingPeriod     = 30 * time.Second
	pingTimeout    = 10 * time.Second
	maxAge         = 30 * time.Minute // ±10 %; then a client comes again, perhaps to another replica, with the token it has by then
	maxAgeGrace    = 10 * time.Second
	servingTTL     = 24 * time.Hour
)

// serve answers xDS and CA calls until ctx ends. When serving ends before, this
// replica is not ready any more, and its clients are sent to others little by little.
func (a *App) serve(ctx, serving context.Context) error {
	lis, err := (&net.ListenConfig{}).Listen(ctx, "tcp", a.cfg.XDSListen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	a.bound <- lis.Addr()
	options := []grpc.ServerOption{
		grpc.Creds(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: a.identity.certificate})),
		grpc.ForceServerCodecV2(xds.Codec()), grpc.MaxRecvMsgSize(maxRequestSize), grpc.MaxConcurrentStreams(maxStreams), grpc.ConnectionTimeout(handshakeTime),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minPing, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: pingPeriod, Timeout: pingTimeout,
			MaxConnectionAge: maxAge, MaxConnectionAgeGrace: maxAgeGrace}),
	}
	b := newBerths(lis, func(more ...grpc.ServerOption) *grpc.Server {
		s := grpc.NewServer(append(more, options...)...)
		a.streams.Register(s)
		if a.cfg.CAAddress == "" {
			a.ca.Register(s)
		}
		return s
	})
	a.log.Info("serving xDS and CA", "address", lis.Addr().String())
	defer context.AfterFunc(serving, a.leaving)()
	return b.run(ctx, serving, func() time.Duration {
		if len(a.streams.Proxies()) == 0 {
			return 0
		}
		return a.cfg.Drain
	})
}

// Addr returns the address of xDS and CA once it is listened on.
func (a *App) Addr(ctx context.Context) (net.Addr, error) {
	select {
	case addr := <-a.bound:
		a.bound <- addr
		return addr, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// serving is the certificate of the port, made anew at half its life and when the
// authority is another one.
type serving struct {
	authority *selfsigned.Authority
	names     []string
	addrs     []netip.Addr
	log       *slog.Logger

	mu    sync.Mutex
	cert  *tls.Certificate
	from  *selfsigned.Material // that signed cert
	renew time.Time
}

func newServing(a *selfsigned.Authority, names []string, addrs []netip.Addr, log *slog.Logger) *serving {
	return &serving{authority: a, names: names, addrs: addrs, log: log}
}

// certificate returns the certificate for a new connection. When it cannot be
// renewed the old one serves on until it expires.
func (s *serving) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	from := s.authority.Material()
	if s.cert != nil && s.from == from && time.Now().Before(s.renew) {
		return s.cert, nil
	}
	cert, err := s.authority.ServerCertificate(s.names, s.addrs, servingTTL)
	if err != nil && s.cert == nil {
		return nil, fmt.Errorf("serving certificate: %w", err)
	}
	if err != nil {
		s.log.Error("serving certificate not renewed", "err", err)
		s.from, s.renew = from, time.Now().Add(time.Minute)
		return s.cert, nil
	}
	s.cert, s.from, s.renew = cert, from, time.Now().Add(time.Until(cert.Leaf.NotAfter)/2)
	return cert, nil
}
