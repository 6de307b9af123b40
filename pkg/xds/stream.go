package xds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/metadata"

	"github.com/culvert-mesh/culvert/pkg/token"
)

type stream = discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient

// endKind is why a stream ended, as metrics call it.
type endKind string

const (
	endConnection endKind = "ConnectionError" // there was no stream
	endError      endKind = "Error"
	endReconnect  endKind = "Reconnect" // the server asked for it
	endComplete   endKind = "Complete"  // the server closed the stream in order
)

// ending is how a session ended.
type ending struct {
	kind  endKind
	err   error
	lived time.Duration
}

// session is one connection and one stream, from dial to end.
func (c *Client) session(ctx context.Context) ending {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, err := c.connect()
	if err != nil {
		return ending{kind: endConnection, err: err}
	}
	defer conn.Close()
	ctx, err = c.withHeaders(ctx)
	if err != nil {
		return ending{kind: endConnection, err: err}
	}
	s, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return ending{kind: endConnection, err: err}
	}
	start := time.Now()
	c.cfg.Log.Info("connected to control plane", "address", c.cfg.Address)
	c.down.Store(0)
	err = c.serve(ctx, cancel, s)
	if c.connected.Swap(false) {
		c.heard.Store(time.Now().UnixNano())
	}
	c.down.Store(time.Now().UnixNano())
	return ending{kind: kindOf(err), err: err, lived: time.Since(start)}
}

// withHeaders adds the call's metadata.
func (c *Client) withHeaders(ctx context.Context) (context.Context, error) {
	for name, value := range c.cfg.Headers {
		ctx = metadata.AppendToOutgoingContext(ctx, name, value)
	}
	if c.cfg.Token == nil || !token.MaySend(c.target.tls, c.target.host) {
		return ctx, nil
	}
	bearer, err := c.cfg.Token()
	if err != nil {
		return nil, fmt.Errorf("token: %w", err)
	}
	if bearer == "" {
		return ctx, nil
	}
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+bearer)
	if c.cfg.ClusterID != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "clusterid", c.cfg.ClusterID)
	}
	return ctx, nil
}

func kindOf(err error) endKind {
	switch {
	case errors.Is(err, io.EOF):
		return endComplete
	case err != nil && strings.Contains(err.Error(), "received prior goaway: code: NO_ERROR"):
		return endReconnect
	}
	return endError
}

// serve takes responses until the stream ends; a second goroutine sends, so that
// neither side can block the other.
func (c *Client) serve(ctx context.Context, cancel context.CancelFunc, s stream) error {
	var out outbox
	node := &core.Node{Id: c.cfg.NodeID, Metadata: c.node}
	for _, st := range c.types {
		out.put(st.firstRequest(node))
	}
	c.wakeSender()
	var sender sync.WaitGroup
	defer sender.Wait()
	defer cancel()
	sender.Go(func() { c.send(ctx, s, &out) })
	for {
		resp, err := s.Recv()
		if err != nil {
			return err
		}
		c.take(resp, &out)
	}
}

// outbox is what waits to be sent.
type outbox struct {
	mu       sync.Mutex
	requests []*discovery.DeltaDiscoveryRequest
}

func (o *outbox) put(r *discovery.DeltaDiscoveryRequest) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.requests = append(o.requests, r)
}

func (o *outbox) takeAll() []*discovery.DeltaDiscoveryRequest {
	o.mu.Lock()
	defer o.mu.Unlock()
	r := o.requests
	o.requests = nil
	return r
}

// send sends what is in the outbox, and names that have changed. When it fails,
// Recv fails too and knows why.
func (c *Client) send(ctx context.Context, s stream, out *outbox) {
	for {
		select {
		case <-c.wake:
		case <-ctx.Done():
			return
		}
		requests := out.takeAll()
		for _, st := range c.types {
			if r := st.changeRequest(); r != nil {
				requests = append(requests, r)
			}
		}
		for _, r := range requests {
			if s.Send(r) != nil {
				return
			}
		}
	}
}

// take applies one response and answers it.
func (c *Client) take(resp *discovery.DeltaDiscoveryResponse, out *outbox) {
	c.lastContact.Store(time.Now().UnixNano())
	c.connected.Store(true)
	st := c.byURL[resp.GetTypeUrl()]
	if st == nil {
		c.cfg.Log.Warn("control plane sent a type that was not asked for", "type", resp.GetTypeUrl())
		return
	}
	first := !st.accepted
	rejected := st.apply(resp)
	if len(rejected) > 0 {
		c.cfg.Log.Warn("resources rejected", "type", resp.GetTypeUrl(), "count", len(rejected), "error", rejectionText(rejected))
	}
	c.cfg.Log.Debug("response applied", "type", resp.GetTypeUrl(),
		"resources", len(resp.GetResources()), "removed", len(resp.GetRemovedResources()))
	if c.cfg.Applied != nil {
		c.cfg.Applied(resp.GetTypeUrl())
	}
	out.put(answer(resp, rejected))
	c.wakeSender()
	if first && st.accepted && st.sub.Wildcard {
		c.waiting--
		if c.waiting == 0 {
			close(c.snapshot)
		}
	}
}
