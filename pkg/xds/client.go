// Package xds is the client side of delta xDS over one aggregated stream.
//
//	       ┌────────► connect ── fails ──────────────┐
//	       │             │                           │
//	       │  first request per type: node, versions │
//	20 ms … 4 s          │                           │
//	       │         response ──► Handle ──► ACK or NACK
//	       │             ▲                           │
//	       │             └───────────────────────────┤
//	       └───────────── the stream ends ◄──────────┘
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
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/culvert-mesh/culvert/pkg/certs"
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
	// Handle takes the changes of one response and returns what it rejects; all the
	// rest has taken effect when it returns. What is removed is to be removed before
	// anything is added. For a subscription by name, removed also tells that a name
	// does not exist.
	Handle func(added []Resource, removed []string) []Rejected
}

// Metrics is told about the stream, for the xds_* metrics.
type Metrics interface {
	// ConnectionTerminated counts the ends of streams by reason: ConnectionError,
	// Error, Reconnect or Complete.
	ConnectionTerminated(reason string)
	// Message counts a response and its size in bytes.
	Message(typeURL string, bytes int)
}

// Config is a client's fixed settings.
type Config struct {
	// Address is "https://host:port" or "http://host:port"; https without a scheme.
	Address string
	// AltHostname is accepted in the server's certificate beside the address's host.
	AltHostname string
	// TLS limits the connection's versions and key exchanges.
	TLS certs.Profile
	// Roots are asked for at every connection. Nil means the system's.
	Roots func() (*x509.CertPool, error)
	// NodeID and NodeMetadata introduce this proxy. Metadata values are those that
	// structpb.NewStruct takes.
	NodeID       string
	NodeMetadata map[string]any
	// Token is asked for at every stream; nil or an empty token sends none. It is
	// sent over plain http only to this machine.
	Token func() (string, error)
	// ClusterID goes along with a token as the "clusterid" header.
	ClusterID string
	Headers   map[string]string // sent along with every stream
	Types     []Subscription
	// Dial opens TCP connections; nil means the process's own network namespace.
	Dial func(ctx context.Context, address string) (net.Conn, error)
	// Applied, when set, is told after every response of what type it was: what
	// Held returns has changed.
	Applied func(typeURL string)
	Log     *slog.Logger
	Metrics Metrics // may be nil
}

// Client keeps one stream to the control plane. Make it with NewClient.
type Client struct {
	cfg    Config
	target target
	node   *structpb.Struct
	types  []*typeState
	byURL  map[string]*typeState

	snapshot    chan struct{} // closed by the first snapshot
	waiting     int           // wildcard types without an accepted response; run's own
	connected   atomic.Bool
	lastContact atomic.Int64 // Unix nanoseconds
	heard       atomic.Int64 // Unix nanoseconds at which the last stream ended; 0 = none has
	down        atomic.Int64 // Unix nanoseconds since which there is no stream; 0 = there is one

	wake chan struct{} // there is something to send
}

// NodeID introduces a proxy of a kind, such as "ztunnel", as upstream's do.
func NodeID(kind string, ip netip.Addr, pod, namespace, clusterDomain string) string {
	return fmt.Sprintf("%s~%s~%s.%s~%s.svc.%s", kind, ip, pod, namespace, namespace, clusterDomain)
}

// NewClient checks the settings and returns a client that does nothing until Run.
func NewClient(cfg Config) (*Client, error) {
	t, err := parseTarget(cfg.Address)
	if err != nil {
		return nil, err
	}
	node, err := structpb.NewStruct(cfg.NodeMetadata)
	if err != nil {
		return nil, fmt.Errorf("xds: node metadata: %w", err)
	}
	if cfg.Log == nil {
		return nil, errors.New("xds: no logger")
	}
	c := &Client{
		cfg: cfg, target: t, node: node,
		byURL:    make(map[string]*typeState, len(cfg.Types)),
		snapshot: make(chan struct{}),
		wake:     make(chan struct{}, 1),
	}
	for _, sub := range cfg.Types {
		if err := c.addType(sub); err != nil {
			return nil, err
		}
	}
	if c.waiting == 0 {
		close(c.snapshot)
	}
	return c, nil
}

func (c *Client) addType(sub Subscription) error {
	if sub.TypeURL == "" || sub.Handle == nil {
		return fmt.Errorf("xds: subscription %q: want a type and a handler", sub.TypeURL)
	}
	if c.byURL[sub.TypeURL] != nil {
		return fmt.Errorf("xds: type %s is subscribed to twice", sub.TypeURL)
	}
	st := newTypeState(sub)
	c.types = append(c.types, st)
	c.byURL[sub.TypeURL] = st
	if sub.Wildcard {
		c.waiting++
	}
	return nil
}

// Run connects, and connects again, until ctx ends; then it returns nil.
func (c *Client) Run(ctx context.Context) error {
	var wait backOff
	c.down.CompareAndSwap(0, time.Now().UnixNano())
	for {
		end := c.session(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if c.cfg.Metrics != nil {
			c.cfg.Metrics.ConnectionTerminated(string(end.kind))
		}
		d := wait.next(end)
		c.cfg.Log.Warn("control plane stream ended",
			"address", c.cfg.Address, "reason", string(end.kind), "error", end.err, "retry_in", d.String())
		if !sleep(ctx, d) {
			return nil
		}
	}
}

// FirstSnapshot is closed once every wildcard type has had a response that was
// accepted whole.
func (c *Client) FirstSnapshot() <-chan struct{} { return c.snapshot }

// Connected reports whether a stream is up and has answered.
func (c *Client) Connected() bool { return c.connected.Load() }

// LastContact is when the last response arrived; zero if none has.
func (c *Client) LastContact() time.Time {
	if n := c.lastContact.Load(); n != 0 {
		return time.Unix(0, n)
	}
	return time.Time{}
}

// Subscribe adds names to a subscription that is not a wildcard. It does nothing
// for an unknown type.
func (c *Client) Subscribe(typeURL string, names ...string) { c.resubscribe(typeURL, names, true) }

// Unsubscribe takes names back.
func (c *Client) Unsubscribe(typeURL string, names ...string) { c.resubscribe(typeURL, names, false) }

func (c *Client) resubscribe(typeURL string, names []string, wanted bool) {
	st := c.byURL[typeURL]
	if st == nil || st.sub.Wildcard {
		return
	}
	st.want(names, wanted)
	c.wakeSender()
}

func (c *Client) wakeSender() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}
