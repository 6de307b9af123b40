// Package xds is the client side of delta xDS over one aggregated stream.
//
//	connect ─► stream ─► first request per type ─► response ─► Handle
//	   ▲                   node, versions held        │  ▲
//	   │ 20 ms … 15 s                        ACK/NACK ┘  └─ …
//	   └────────────── the stream ends ◄─────────────────┘
//
// What was accepted is kept, with its version, while the server is away; after a
// reconnect the versions are told, so that only differences travel. A resource
// that is rejected is reported back by name and reason; the other resources of
// the same response take effect anyway.
//
// A Client's methods may be called from any goroutine. Handle functions are
// called from one goroutine, one at a time, in the order of the responses.
package xds

import (
	"context"
	"crypto/x509"
	"log/slog"
	"net"
	"time"

	"google.golang.org/protobuf/types/known/anypb"
)

// Resource is one resource of a response.
type Resource struct {
	Name    string
	Version string
	Aliases []string
	Body    *anypb.Any // its type is the subscription's
}

// Rejected names a resource that was not accepted, and why.
type Rejected struct {
	Name string
	Err  error
}

// Subscription is one type of resource.
type Subscription struct {
	TypeURL string
	// Wildcard subscribes to everything. Otherwise only Names, and what Subscribe
	// adds later, are asked for.
	Wildcard bool
	Names    []string
	// Handle takes the changes of one response and returns what it rejects. All
	// others have taken effect when it returns. For a subscription by name, removed
	// also tells that a name does not exist.
	Handle func(added []Resource, removed []string) []Rejected
}

// Metrics is told about the stream; see protocols: xds_* metrics.
type Metrics interface {
	// ConnectionTerminated counts ends by reason: ConnectionError, Error, Reconnect
	// or Complete.
	ConnectionTerminated(reason string)
	// Message counts a response and its size in bytes.
	Message(typeURL string, bytes int)
}

// Header is one more gRPC header.
type Header struct{ Name, Value string }

// Config is a client's fixed settings.
type Config struct {
	// Address is "https://host:port" or "http://host:port"; https without a scheme.
	Address string
	// AltHostname is accepted in the server's certificate beside the address's host.
	AltHostname string
	// Roots are asked for at every connection. Nil means the system's.
	Roots func() (*x509.CertPool, error)
	// NodeID and NodeMetadata introduce this proxy. Metadata values are those that
	// structpb.NewStruct takes.
	NodeID       string
	NodeMetadata map[string]any
	// Token is asked for at every stream; nil or an empty token sends none. It is
	// never sent over plain http.
	Token func() (string, error)
	// ClusterID goes along with a token as the "clusterid" header.
	ClusterID string
	Headers   []Header
	Types     []Subscription
	// Dial opens TCP connections; nil means the process's own network namespace.
	Dial    func(ctx context.Context, address string) (net.Conn, error)
	Log     *slog.Logger
	Metrics Metrics // may be nil
}

// Client keeps one stream to the control plane.
type Client struct{}

// NewClient returns a client that does nothing until Run.
func NewClient(cfg Config) (*Client, error) { return &Client{}, nil }

// Run connects, and connects again, until ctx ends. It returns nil then.
func (c *Client) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// FirstSnapshot is closed once every wildcard type has had a response that was
// accepted whole.
func (c *Client) FirstSnapshot() <-chan struct{} { return nil }

// Connected reports whether a stream is up and has answered.
func (c *Client) Connected() bool { return false }

// LastContact is when the last response arrived; zero if none has.
func (c *Client) LastContact() time.Time { return time.Time{} }

// Subscribe adds names to a subscription that is not a wildcard.
func (c *Client) Subscribe(typeURL string, names ...string) {}

// Unsubscribe takes names back.
func (c *Client) Unsubscribe(typeURL string, names ...string) {}
