// Package caclient obtains certificates from an IstioCertificateService: our
// control plane's, istiod's, or any other CA of that protocol.
//
//	Issue(id):  new key ─▶ CSR ─▶ CreateCertificate ─▶ [leaf, intermediates…, roots] ─▶ SVID
//	            metadata: authorization: Bearer <token>, clusterid, CA_HEADER_*
//	            {"ImpersonatedIdentity": "<id>"} when a node proxy asks for a pod
//
// The token is sent over TLS, or in clear to this machine, and never otherwise.
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
	"sync"
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
	"github.com/culvert-mesh/culvert/pkg/token"
	"github.com/culvert-mesh/culvert/pkg/wire/ca"
)

// DefaultTTL is the validity asked for when Config names none.
const DefaultTTL = 24 * time.Hour

// Config configures a Client.
type Config struct {
	Address     string                         // [https://]host:port, or http://host:port without TLS
	Roots       func() (*x509.CertPool, error) // of the CA's server certificate, read at every TLS handshake
	AltHostname string                         // accepted in addition to Address's host; may be empty
	TLS         certs.Profile                  // of the connection
	Token       func() (string, error)         // bearer token, read at every call; nil or "" = none
	ClusterID   string                         // sent with the token as "clusterid"
	Headers     map[string]string              // extra metadata (CA_HEADER_*)
	TTL         time.Duration                  // asked for; 0 = DefaultTTL
	Impersonate bool                           // ask in the name of each identity (node proxies)
}

// Client implements certs.Issuer.
type Client struct {
	cfg    Config
	target target

	mu    sync.Mutex
	link  *link
	roots *x509.CertPool // that Reconnect saw last; nil before
}

// target is a parsed address.
type target struct {
	addr, host string // host:port, and its host
	tls        bool
}

// link is one connection, which ends when its last call has.
type link struct {
	conn  *grpc.ClientConn
	calls sync.WaitGroup // begun while it is Client.link, under Client.mu
}

// New returns a client, which connects at its first call.
func New(cfg Config) (*Client, error) {
	if cfg.TTL == 0 {
		cfg.TTL = DefaultTTL
	}
	t, err := parseTarget(cfg)
	if err != nil {
		return nil, err
	}
	c := &Client{cfg: cfg, target: t}
	c.link, err = c.newLink()
	return c, err
}

func (c *Client) newLink() (*link, error) {
	transport := insecure.NewCredentials()
	if c.target.tls {
		transport = credentials.NewTLS(c.cfg.TLS.Channel(c.target.host, c.cfg.AltHostname, c.cfg.Roots))
	}
	conn, err := grpc.NewClient("dns:///"+c.target.addr,
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
		return nil, fmt.Errorf("certificate authority %s: %w", c.cfg.Address, err)
	}
	return &link{conn: conn}, nil
}

// parseTarget splits the address into what to dial and how to protect it.
func parseTarget(cfg Config) (t target, err error) {
	addr, plain := strings.CutPrefix(cfg.Address, "http://")
	t.tls = !plain
	t.addr = strings.TrimSuffix(strings.TrimPrefix(addr, "https://"), "/")
	t.host, _, err = net.SplitHostPort(t.addr)
	switch {
	case err != nil || t.host == "":
		return t, fmt.Errorf("certificate authority address %q: want host:port, with http:// or https:// in front or not", cfg.Address)
	case t.tls && cfg.Roots == nil:
		return t, errors.New("certificate authority: TLS without roots")
	}
	return t, nil
}

// Reconnect makes the CA prove itself anew at the next call if the roots are others
// than at the last Reconnect, and reports whether they are. Calls under way finish.
func (c *Client) Reconnect() (changed bool, err error) {
	if !c.target.tls {
		return false, nil
	}
	roots, err := c.cfg.Roots()
	if err != nil {
		return false, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.roots
	c.roots = roots
	if before == nil || before.Equal(roots) {
		return false, nil
	}
	next, err := c.newLink()
	if err != nil {
		return true, err
	}
	go c.link.end()
	c.link = next
	return true, nil
}

func (l *link) end() {
	l.calls.Wait()
	_ = l.conn.Close()
}

// use returns the present connection, which lasts until its calls are done.
func (c *Client) use() *link {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.link.calls.Add(1)
	return c.link
}

// Close ends the connection. It may be called more than once.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.link.conn.Close(); err != nil && status.Code(err) != codes.Canceled {
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
	l := c.use()
	defer l.calls.Done()
	resp, err := ca.NewIstioCertificateServiceClient(l.conn).CreateCertificate(ctx, req)
	if err != nil {
		return nil, explain(err)
	}
	return certs.ParseSVID(id, key, resp.GetCertChain())
}

// explain says what the CA answered, or that it did not.
func explain(err error) error {
	s := status.Convert(err)
	switch s.Code() {
	case codes.Unavailable, codes.DeadlineExceeded:
		return fmt.Errorf("%w: %s: %s", certs.ErrUnreachable, s.Code(), s.Message())
	}
	return fmt.Errorf("%s: %s", s.Code(), s.Message())
}

// withMetadata adds the token and the configured headers to a call. Without a
// token the cluster is not named either.
func (c *Client) withMetadata(ctx context.Context) (context.Context, error) {
	for k, v := range c.cfg.Headers {
		ctx = metadata.AppendToOutgoingContext(ctx, k, v)
	}
	if c.cfg.Token == nil || !token.MaySend(c.target.tls, c.target.host) {
		return ctx, nil
	}
	bearer, err := c.cfg.Token()
	if err != nil || bearer == "" {
		return ctx, err
	}
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+bearer)
	if c.cfg.ClusterID != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "clusterid", c.cfg.ClusterID)
	}
	return ctx, nil
}
