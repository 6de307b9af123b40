// Package caclient obtains certificates from an IstioCertificateService: our
// control plane's, istiod's, or any other CA of that protocol.
//
//	Issue(id):  new key ─▶ CSR ─▶ CreateCertificate ─▶ [leaf, intermediates…, roots] ─▶ SVID
//	            metadata: authorization: Bearer <token>, clusterid, CA_HEADER_*
//	            {"ImpersonatedIdentity": "<id>"} when a node proxy asks for a pod
//
// A Client is safe for concurrent use.
package caclient

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/culvert-mesh/culvert/pkg/certs"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
	"github.com/culvert-mesh/culvert/pkg/wire/ca"
)

// DefaultTTL is the validity asked for when Config names none.
const DefaultTTL = 24 * time.Hour

// Config configures a Client.
type Config struct {
	Address     string                         // [https://]host:port, or http://host:port without TLS
	Roots       func() (*x509.CertPool, error) // of the CA's server certificate, read at every TLS handshake
	AltHostname string                         // accepted in addition to Address's host; may be empty
	Token       func() (string, error)         // bearer token, read at every call; nil or "" = none
	ClusterID   string                         // sent with the token as "clusterid"
	Headers     map[string]string              // extra metadata (CA_HEADER_*)
	TTL         time.Duration                  // asked for; 0 = DefaultTTL
	Impersonate bool                           // ask in the name of each identity (node proxies)
}

// Client implements certs.Issuer.
type Client struct {
	cfg  Config
	conn *grpc.ClientConn
	ca   ca.IstioCertificateServiceClient
}

// New returns a client, which connects at its first call.
func New(cfg Config) (*Client, error) {
	if cfg.TTL == 0 {
		cfg.TTL = DefaultTTL
	}
	target, transport, err := channel(cfg)
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient("dns:///"+target,
		grpc.WithTransportCredentials(transport),
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		// The cache paces retries; the channel must not hold them up much longer.
		grpc.WithConnectParams(grpc.ConnectParams{
			MinConnectTimeout: 5 * time.Second,
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
		}))
	if err != nil {
		return nil, fmt.Errorf("certificate authority %s: %w", cfg.Address, err)
	}
	return &Client{cfg: cfg, conn: conn, ca: ca.NewIstioCertificateServiceClient(conn)}, nil
}

// channel splits the address into what to dial and how to protect it.
func channel(cfg Config) (target string, transport credentials.TransportCredentials, err error) {
	target, plain := strings.CutPrefix(cfg.Address, "http://")
	target = strings.TrimSuffix(strings.TrimPrefix(target, "https://"), "/")
	host, _, err := net.SplitHostPort(target)
	if err != nil || host == "" {
		return "", nil, fmt.Errorf("certificate authority address %q: want host:port, with http:// or https:// in front or not", cfg.Address)
	}
	if plain {
		return target, insecure.NewCredentials(), nil
	}
	if cfg.Roots == nil {
		return "", nil, errors.New("certificate authority: TLS without roots")
	}
	return target, credentials.NewTLS(certs.ChannelTLS(host, cfg.AltHostname, cfg.Roots)), nil
}

// Close ends the connection. It may be called more than once.
func (c *Client) Close() error {
	if err := c.conn.Close(); err != nil && status.Code(err) != codes.Canceled {
		return err
	}
	return nil
}

// Issue makes a key and has it certified for id. Errors carry
// reason.NoCertificate and what the CA said.
func (c *Client) Issue(ctx context.Context, id mesh.Identity) (*certs.SVID, error) {
	svid, err := c.issue(ctx, id)
	if err != nil {
		return nil, reason.New(reason.NoCertificate, "request certificate", id.String(), err)
	}
	return svid, nil
}

func (c *Client) issue(ctx context.Context, id mesh.Identity) (*certs.SVID, error) {
	key, csr, err := certs.NewRequest(id)
	if err != nil {
		return nil, err
	}
	if ctx, err = c.withMetadata(ctx); err != nil {
		return nil, err
	}
	req := &ca.IstioCertificateRequest{Csr: string(csr), ValidityDuration: int64(c.cfg.TTL / time.Second)}
	if c.cfg.Impersonate {
		req.Metadata = &structpb.Struct{Fields: map[string]*structpb.Value{
			ca.ImpersonatedIdentity: structpb.NewStringValue(id.String()),
		}}
	}
	resp, err := c.ca.CreateCertificate(ctx, req)
	if err != nil {
		s := status.Convert(err)
		return nil, fmt.Errorf("%s: %s", s.Code(), s.Message())
	}
	return certs.ParseSVID(id, key, resp.GetCertChain())
}

// withMetadata adds the token and the configured headers to a call. Without a
// token the cluster is not named either.
func (c *Client) withMetadata(ctx context.Context) (context.Context, error) {
	for k, v := range c.cfg.Headers {
		ctx = metadata.AppendToOutgoingContext(ctx, k, v)
	}
	if c.cfg.Token == nil {
		return ctx, nil
	}
	token, err := c.cfg.Token()
	if err != nil || token == "" {
		return ctx, err
	}
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	if c.cfg.ClusterID != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "clusterid", c.cfg.ClusterID)
	}
	return ctx, nil
}
