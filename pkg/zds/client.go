package zds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netns"
	"github.com/culvert-mesh/culvert/pkg/packet"
	wire "github.com/culvert-mesh/culvert/pkg/wire/zds"
)

// Handler is what a ztunnel does with its node's pods. Calls come one after the
// other, and the agent waits for each: open the listeners and return; do not wait
// for configuration or certificates.
type Handler interface {
	// SnapshotBegin says that a connection to the agent is up and that the pods
	// that exist follow, each by Add or Keep.
	SnapshotBegin()
	// Add takes over a pod's namespace, which the handler closes, also when it
	// returns an error. The agent may add a pod again: with the namespace it has
	// (compare NS.ID) that changes nothing, with another one it replaces the pod.
	Add(ctx context.Context, uid mesh.PodUID, info mesh.PodInfo, ns *netns.NS) error
	// Keep says that a pod still exists. A pod that the handler does not know is
	// no error when the agent has not found its namespace either.
	Keep(uid mesh.PodUID) error
	// Delete says that a pod is gone or has left the mesh. An unknown one is no error.
	Delete(uid mesh.PodUID) error
	// SnapshotDone says that every pod that exists has been named since
	// SnapshotBegin; the handler drops all others at once.
	SnapshotDone()
	// Disconnected says that the agent is gone. Pods stay as they are.
	Disconnected()
}

// ClientConfig configures a Client. The zero value is fine.
type ClientConfig struct {
	Log        *slog.Logger
	MinBackoff time.Duration // between two attempts to connect, doubling; 0 = 20 ms
	// MaxBackoff bounds the wait; 0 = 2 s. Others of this protocol wait up to 15 s,
	// but every second after the agent's return is one in which no pod can start,
	// and a dial to a local socket costs nothing.
	MaxBackoff time.Duration
}

// Client is a ztunnel's end.
type Client struct {
	path    string
	handler Handler
	cfg     ClientConfig
	up      atomic.Bool

	mu       sync.Mutex
	retired  bool
	sessions int
	leave    context.CancelFunc // ends the present session
}

// NewClient returns a client of the agent's socket at path.
func NewClient(path string, h Handler, cfg ClientConfig) *Client {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.MinBackoff <= 0 {
		cfg.MinBackoff = 20 * time.Millisecond
	}
	if cfg.MaxBackoff <= 0 {
		cfg.MaxBackoff = 2 * time.Second
	}
	return &Client{path: path, handler: h, cfg: cfg}
}

// Connected reports whether a session with the agent is up.
func (c *Client) Connected() bool { return c.up.Load() }

// Retire says that this ztunnel takes no more pods: a session that ends is its last
// one. The agent gives pods to whoever connected last, which after a restart of the
// agent may be us, although a successor serves: so a session that is not our first
// ends at once.
func (c *Client) Retire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.retired = true; c.sessions > 1 && c.leave != nil {
		c.leave()
	}
}

// enter begins a session, unless it is too late for one. leave must be called.
func (c *Client) enter(ctx context.Context) (session context.Context, leave context.CancelFunc, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.retired {
		return nil, nil, false
	}
	ctx, c.leave = context.WithCancel(ctx)
	return ctx, c.leave, true
}

// connected counts a session that has come about. One that came about after Retire
// ends.
func (c *Client) connected() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sessions++; c.retired && c.sessions > 1 {
		c.leave()
	}
}

// Run keeps a session with the agent until ctx ends, or after Retire until the
// session has, and then returns nil. It returns an error with ErrViolation in its
// chain when the agent breaks the protocol's logic: then the state of the two cannot
// be trusted any more.
func (c *Client) Run(ctx context.Context) error {
	wait, last := c.cfg.MinBackoff, ""
	for ctx.Err() == nil {
		inner, leave, ok := c.enter(ctx)
		if !ok {
			return nil
		}
		done, err := c.session(inner)
		leave()
		if errors.Is(err, ErrViolation) {
			return err
		}
		if ctx.Err() != nil {
			return nil
		}
		if done {
			wait = c.cfg.MinBackoff
		}
		level := slog.LevelWarn
		if err.Error() == last {
			level = slog.LevelDebug // said already
		}
		last = err.Error()
		c.cfg.Log.Log(ctx, level, "no connection to the node agent", "path", c.path, "error", err, "retry_in", wait)
		sleep(ctx, wait)
		wait = min(2*wait, c.cfg.MaxBackoff)
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// session runs one connection and reports whether its snapshot was completed.
func (c *Client) session(ctx context.Context) (done bool, err error) {
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: c.path, Net: "unixpacket"})
	if err != nil {
		return false, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if err := writePacket(conn, &wire.ZdsHello{Version: wire.Version_V1}, nil); err != nil {
		return false, fmt.Errorf("send hello: %w", err)
	}
	c.cfg.Log.Info("connected to the node agent", "path", c.path)
	c.up.Store(true)
	c.connected()
	c.handler.SnapshotBegin()
	defer c.handler.Disconnected()
	defer c.up.Store(false)
	s := session{client: c, conn: conn}
	for {
		if err := s.step(ctx); err != nil {
			return s.complete, err
		}
	}
}

// session is the state of one connection.
type session struct {
	client   *Client
	conn     *net.UnixConn
	complete bool // SnapshotSent has come
}

// step answers one request.
func (s *session) step(ctx context.Context) error {
	var buf [wire.MaxPacket + 1]byte
	n, fds, err := packet.Read(s.conn, buf[:], maxDescriptors)
	if err != nil && !errors.Is(err, packet.ErrMalformed) {
		if errors.Is(err, io.EOF) {
			err = errors.New("closed by the agent")
		}
		return err
	}
	var m message
	if err == nil {
		if m, err = decode(buf[:n], fds); err != nil {
			packet.Close(fds...)
		}
	}
	if err == nil {
		err = s.handle(ctx, m)
	}
	if ctx.Err() != nil {
		return ctx.Err() // no answer at all: the agent asks another ztunnel
	}
	if werr := writePacket(s.conn, encodeAck(err), nil); werr != nil && !errors.Is(err, ErrViolation) {
		return fmt.Errorf("send ack: %w", werr)
	}
	if errors.Is(err, packet.ErrMalformed) || errors.Is(err, ErrViolation) {
		return err
	}
	if err != nil {
		s.client.cfg.Log.Error("request of the node agent failed", "request", m.kind.String(), "uid", m.uid, "error", err)
	}
	return nil
}

// handle carries out one request. Errors other than violations are answers.
func (s *session) handle(ctx context.Context, m message) error {
	c := s.client
	switch m.kind {
	case kindAdd:
		return c.add(ctx, m)
	case kindKeep:
		if s.complete {
			return fmt.Errorf("%w: keep after the snapshot", ErrViolation)
		}
		return c.handler.Keep(m.uid)
	case kindDelete:
		return c.handler.Delete(m.uid)
	default:
		if s.complete {
			return fmt.Errorf("%w: second snapshot on one connection", ErrViolation)
		}
		s.complete = true
		c.handler.SnapshotDone()
		return nil
	}
}

// add passes on an Add and the namespace that came with it.
func (c *Client) add(ctx context.Context, m message) error {
	if m.noInfo {
		packet.Close(m.fd)
		return fmt.Errorf("%w: add without workload info", ErrViolation)
	}
	ns, err := netns.FromFD(m.fd)
	if err != nil {
		return fmt.Errorf("add pod %s (%s): %w", m.info, m.uid, err)
	}
	return c.handler.Add(ctx, m.uid, m.info, ns)
}
