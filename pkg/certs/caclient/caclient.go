// Package caclient obtains certificates from an IstioCertificateService.
package caclient

import (
	"context"
	"crypto/x509"
	"time"

	"github.com/culvert-mesh/culvert/pkg/certs"
	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// Config configures a Client.
type Config struct {
	Address     string                         // host:port, https://host:port or http://host:port
	Roots       func() (*x509.CertPool, error) // read at every TLS handshake
	AltHostname string                         // accepted in addition to Address's host; may be empty
	Token       func() (string, error)         // bearer token, read at every call; nil or "" = none
	ClusterID   string                         // sent with the token as "clusterid"
	Headers     map[string]string              // extra metadata (CA_HEADER_*)
	TTL         time.Duration                  // asked for; 0 = 24 h
	Impersonate bool                           // ask in the name of each identity (node proxies)
}

// Client implements certs.Issuer.
type Client struct{}

// New returns a client that connects at its first call.
func New(cfg Config) (*Client, error) { panic("skeleton") }

// Issue implements certs.Issuer.
func (c *Client) Issue(ctx context.Context, id mesh.Identity) (*certs.SVID, error) {
	panic("skeleton")
}

// Close ends the connection. It may be called more than once.
func (c *Client) Close() error { panic("skeleton") }
