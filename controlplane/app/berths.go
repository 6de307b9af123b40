package app

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/culvert-mesh/culvert/pkg/run"
)

// berthCount is how many parts the connections are ended in.
const berthCount = 8

const (
	goAwayTime = 100 * time.Millisecond // for a client to learn that it is to connect anew, before its streams end
	lastCalls  = 2 * time.Second        // for calls that are under way at the end
)

// berths share out connections among several gRPC servers, so that they can be
// ended a part at a time: a server tells its clients all at once to go.
//
//	accept ─▶ 0 1 2 … 7 in turn
//	drain  ─▶ 0: GOAWAY, its streams end, … 1: GOAWAY, …
type berths struct {
	lis  net.Listener
	shut atomic.Bool // lis is closed
	all  []*berth
	mu   sync.Mutex
	next int
	gone int // berths that take no connections any more: the first ones
}

// berth is one server. It is its own listener.
type berth struct {
	server *grpc.Server
	addr   net.Addr
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once

	ending context.Context // ends when the streams are to
	end    context.CancelCauseFunc
}

// newBerths returns berths for what lis accepts. build makes a server with its
// services.
func newBerths(lis net.Listener, build func(...grpc.ServerOption) *grpc.Server) *berths {
	b := &berths{lis: lis}
	for range berthCount {
		one := &berth{addr: lis.Addr(), conns: make(chan net.Conn), closed: make(chan struct{})}
		one.ending, one.end = context.WithCancelCause(context.Background())
		one.server = build(grpc.StreamInterceptor(one.stream))
		b.all = append(b.all, one)
	}
	return b
}

// run serves until ctx ends. When serving ends first, the connections are ended in
// turn over that time, after a third of it in which clients find another replica.
func (b *berths) run(ctx, serving context.Context, over func() time.Duration) error {
	var g run.Group
	for _, one := range b.all {
		g.Add("serve", func(context.Context) error { return one.server.Serve(one) })
	}
	g.Add("accept", b.accept)
	g.Add("end", func(ctx context.Context) error {
		select {
		case <-serving.Done():
			b.drain(ctx, over())
		case <-ctx.Done():
		}
		b.close()
		for _, one := range b.all {
			one.end(io.EOF)
			one.server.Stop()
		}
		return nil
	})
	return g.Run(ctx)
}

// accept hands out connections until the listener is closed.
func (b *berths) accept(ctx context.Context) error {
	wait := run.NewBackoff(5*time.Millisecond, time.Second)
	for {
		conn, err := b.lis.Accept()
		switch {
		case err == nil:
			wait.Reset()
			b.give(conn)
		case b.shut.Load():
			return nil
		default: // no descriptors, perhaps: there will be some
			if run.Sleep(ctx, wait.Next()) != nil {
				return fmt.Errorf("accept: %w", err)
			}
		}
	}
}

func (b *berths) close() {
	b.shut.Store(true)
	b.lis.Close()
}

// give hands a connection to the next berth that takes any.
func (b *berths) give(conn net.Conn) {
	for {
		b.mu.Lock()
		if b.gone == len(b.all) {
			b.mu.Unlock()
			conn.Close()
			return
		}
		one := b.all[b.gone+b.next%(len(b.all)-b.gone)]
		b.next++
		b.mu.Unlock()
		select {
		case one.conns <- conn:
			return
		case <-one.closed:
		}
	}
}

// drain ends the berths one after the other.
func (b *berths) drain(ctx context.Context, over time.Duration) {
	if over <= 0 || run.Sleep(ctx, over/3) != nil {
		return
	}
	var last sync.WaitGroup
	for i, one := range b.all {
		if i > 0 && run.Sleep(ctx, run.Jitter(over*2/3/berthCount, 0.2)) != nil {
			break
		}
		if i == len(b.all)-1 {
			b.close()
		}
		b.mu.Lock()
		b.gone = i + 1
		b.mu.Unlock()
		last.Go(func() { one.depart(ctx) })
	}
	last.Wait()
}

// depart tells clients to connect anew, ends their streams and waits for the calls
// under way.
func (b *berth) depart(ctx context.Context) {
	gone := make(chan struct{})
	go func() { defer close(gone); b.server.GracefulStop() }()
	run.Sleep(ctx, goAwayTime)
	b.end(io.EOF)
	select {
	case <-gone:
		return
	case <-time.After(lastCalls):
	case <-ctx.Done():
	}
	b.server.Stop()
	<-gone
}

// stream lets streams end with the berth: their context ends by io.EOF, in order.
func (b *berth) stream(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	ctx, cancel := context.WithCancelCause(ss.Context())
	defer cancel(nil)
	defer context.AfterFunc(b.ending, func() { cancel(context.Cause(b.ending)) })()
	return handler(srv, &berthStream{ss, ctx})
}

// berthStream is a stream that ends with its berth.
type berthStream struct {
	grpc.ServerStream
	ctx context.Context
}

// Context implements grpc.ServerStream.
func (s *berthStream) Context() context.Context { return s.ctx }

// Accept implements net.Listener.
func (b *berth) Accept() (net.Conn, error) {
	select {
	case conn := <-b.conns:
		return conn, nil
	case <-b.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (b *berth) Close() error {
	b.once.Do(func() { close(b.closed) })
	return nil
}

// Addr implements net.Listener.
func (b *berth) Addr() net.Addr { return b.addr }
