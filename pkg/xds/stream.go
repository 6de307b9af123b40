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
	err = c.serve(ctx, cancel, s)
	c.connected.Store(false)
	return ending{kind: kindOf(err), err: err, lived: time.Since(start)}
}

// withHeaders adds the call's metadata.
func (c *Client) withHeaders(ctx context.Context) (context.Context, error) {
	for _, h := range c.cfg.Headers {
		ctx = metadata.AppendToOutgoingContext(ctx, h.Name, h.Value)
	}
	if c.cfg.Token == nil || !c.target.tls {
		return ctx, nil
	}
	token, err := c.cfg.Token()
	if err != nil {
		return nil, fmt.Errorf("token: %w", err)
	}
	if token == "" {
		return ctx, nil
	}
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
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

// serve speaks on the stream until it ends. Only this
// goroutine sends.
func (c *Client) serve(ctx context.Context, cancel context.CancelFunc, s stream) error {
	node := &core.Node{Id: c.cfg.NodeID, Metadata: c.node}
	for _, st := range c.types {
		if err := s.Send(c.firstRequest(st, node)); err != nil {
			return sendError(s, err)
		}
	}
	responses, failed := make(chan *discovery.DeltaDiscoveryResponse), make(chan error, 1)
	var receiver sync.WaitGroup
	defer receiver.Wait()
	defer cancel()
	receiver.Go(func() { receive(ctx, s, responses, failed) })
	for {
		select {
		case resp := <-responses:
			if err := c.take(s, resp); err != nil {
				return sendError(s, err)
			}
		case <-c.wake:
			if err := c.sendChanges(s); err != nil {
				return sendError(s, err)
			}
		case err := <-failed:
			return err
		}
	}
}

// receive hands over responses until the stream ends or ctx does.
func receive(ctx context.Context, s stream, responses chan<- *discovery.DeltaDiscoveryResponse, failed chan<- error) {
	for {
		resp, err := s.Recv()
		if err != nil {
			failed <- err
			return
		}
		select {
		case responses <- resp:
		case <-ctx.Done():
			return
		}
	}
}

// sendError finds out why a stream that cannot be sent on has ended: Send itself
// says only io.EOF.
func sendError(s stream, err error) error {
	if !errors.Is(err, io.EOF) {
		return err
	}
	for {
		if _, err := s.Recv(); err != nil {
			return err
		}
	}
}

// take applies one response and answers it.
func (c *Client) take(s stream, resp *discovery.DeltaDiscoveryResponse) error {
	c.lastContact.Store(time.Now().UnixNano())
	c.connected.Store(true)
	st := c.byURL[resp.GetTypeUrl()]
	if st == nil {
		c.cfg.Log.Warn("control plane sent a type that was not asked for", "type", resp.GetTypeUrl())
		return nil
	}
	first := !st.accepted
	rejected := st.apply(resp)
	if len(rejected) > 0 {
		c.cfg.Log.Warn("resources rejected", "type", resp.GetTypeUrl(), "count", len(rejected), "error", rejectionText(rejected))
	}
	c.cfg.Log.Debug("response applied", "type", resp.GetTypeUrl(),
		"resources", len(resp.GetResources()), "removed", len(resp.GetRemovedResources()))
	if err := s.Send(answer(resp, rejected)); err != nil {
		return err
	}
	if first && st.accepted && st.sub.Wildcard {
		c.waiting--
		if c.waiting == 0 {
			close(c.snapshot)
		}
	}
	return nil
}

func (c *Client) firstRequest(st *typeState, node *core.Node) *discovery.DeltaDiscoveryRequest {
	c.mu.Lock()
	defer c.mu.Unlock()
	return st.firstRequest(node)
}

func (c *Client) sendChanges(s stream) error {
	for _, st := range c.types {
		c.mu.Lock()
		r := st.changeRequest()
		c.mu.Unlock()
		if r == nil {
			continue
		}
		if err := s.Send(r); err != nil {
			return err
		}
	}
	return nil
}
