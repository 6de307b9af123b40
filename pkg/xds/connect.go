package xds

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/stats"
)

const (
	connectTimeout = 5 * time.Second
	maxMessage     = 200 << 20 // bytes
)

// target is a parsed address.
type target struct {
	tls  bool
	host string // for SNI and verification
	addr string // host:port
}

func parseTarget(address string) (target, error) {
	if !strings.Contains(address, "://") {
		address = "https://" + address
	}
	u, err := url.Parse(address)
	if err != nil {
		return target{}, fmt.Errorf("xds: address %q: %w", address, err)
	}
	if u.Scheme != "https" && u.Scheme != "http" {
		return target{}, fmt.Errorf("xds: address %q: scheme %q, want https or http", address, u.Scheme)
	}
	if u.Hostname() == "" || u.Port() == "" {
		return target{}, fmt.Errorf("xds: address %q: want host and port", address)
	}
	return target{tls: u.Scheme == "https", host: u.Hostname(), addr: u.Host}, nil
}

// connect makes a gRPC connection for one stream; it is dialled by the stream.
// gRPC's own retries never come into play: the first failure ends the session.
func (c *Client) connect() (*grpc.ClientConn, error) {
	creds := insecure.NewCredentials()
	if c.target.tls {
		cfg, err := c.tlsConfig()
		if err != nil {
			return nil, err
		}
		creds = credentials.NewTLS(cfg)
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithContextDialer(c.dial),
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: 2 * connectTimeout}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second, PermitWithoutStream: true}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage), grpc.ForceCodecV2(newCodec())),
	}
	if c.cfg.Metrics != nil {
		options = append(options, grpc.WithStatsHandler(meter{c.cfg.Metrics}))
	}
	return grpc.NewClient("passthrough:///"+c.target.addr, options...)
}

func (c *Client) dial(ctx context.Context, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	if c.cfg.Dial != nil {
		return c.cfg.Dial(ctx, address)
	}
	d := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: 300 * time.Second, Interval: 75 * time.Second, Count: 9,
	}}
	return d.DialContext(ctx, "tcp", address)
}

// tlsConfig authenticates the server only. Its certificate must be good for the
// address's host, or for the alternative name.
func (c *Client) tlsConfig() (*tls.Config, error) {
	var roots *x509.CertPool
	if c.cfg.Roots != nil {
		var err error
		if roots, err = c.cfg.Roots(); err != nil {
			return nil, fmt.Errorf("roots of the control plane: %w", err)
		}
	}
	names := []string{c.target.host}
	if c.cfg.AltHostname != "" {
		names = append(names, c.cfg.AltHostname)
	}
	cfg := &tls.Config{
		ServerName: c.target.host,
		// The standard check knows one name; VerifyConnection does it for each.
		InsecureSkipVerify: true,
		VerifyConnection:   func(s tls.ConnectionState) error { return verify(s, roots, names) },
	}
	c.cfg.TLS.Limit(cfg)
	return cfg, nil
}

func verify(s tls.ConnectionState, roots *x509.CertPool, names []string) error {
	if len(s.PeerCertificates) == 0 {
		return errors.New("control plane presented no certificate")
	}
	intermediates := x509.NewCertPool()
	for _, cert := range s.PeerCertificates[1:] {
		intermediates.AddCert(cert)
	}
	var first error
	for _, name := range names {
		_, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{
			DNSName: name, Roots: roots, Intermediates: intermediates,
		})
		if err == nil {
			return nil
		}
		if first == nil {
			first = err
		}
	}
	return fmt.Errorf("certificate of the control plane: %w", first)
}

// meter counts responses with their size on the wire.
type meter struct{ Metrics }

func (m meter) HandleRPC(_ context.Context, s stats.RPCStats) {
	if in, ok := s.(*stats.InPayload); ok {
		if resp, ok := in.Payload.(*discovery.DeltaDiscoveryResponse); ok {
			m.Message(resp.GetTypeUrl(), in.Length)
		}
	}
}

func (meter) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context   { return ctx }
func (meter) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (meter) HandleConn(context.Context, stats.ConnStats)                       {}
