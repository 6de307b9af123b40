package zds

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netns"
	"github.com/culvert-mesh/culvert/pkg/packet"
)

// ServerConfig configures a Server.
type ServerConfig struct {
	Log *slog.Logger
	// Snapshot returns the pods that are in the mesh now; the server closes their
	// namespaces. A pod must be in it before Add is called for it.
	Snapshot func(ctx context.Context) ([]Workload, error)
	// Connected, when not nil, is told the number of connected ztunnels whenever
	// it changes. It must not call the Server.
	Connected func(n int)
	// Refused, when not nil, is told of a pod that a newly connected ztunnel did
	// not take from the snapshot. It must not call the Server.
	Refused func(uid mesh.PodUID, err error)

	AckTimeout  time.Duration // after which a request fails; 0 = 5 s
	LateTimeout time.Duration // after which a ztunnel that still owes an ack is dropped; 0 = 30 s
}

// Server is the agent's end.
type Server struct {
	path string
	cfg  ServerConfig

	mu    sync.Mutex
	peers []*peer // oldest first
	seq   int
}

// NewServer returns a server that will listen at path.
func NewServer(path string, cfg ServerConfig) *Server {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.AckTimeout <= 0 {
		cfg.AckTimeout = 5 * time.Second
	}
	if cfg.LateTimeout <= 0 {
		cfg.LateTimeout = 30 * time.Second
	}
	if cfg.Snapshot == nil {
		cfg.Snapshot = func(context.Context) ([]Workload, error) { return nil, nil }
	}
	return &Server{path: path, cfg: cfg}
}

// Connected returns how many ztunnels are connected.
func (s *Server) Connected() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.peers)
}

// Run listens until ctx ends. It takes over the path from whoever had it, in one
// step, and afterwards removes it only if it is still its own.
func (s *Server) Run(ctx context.Context) error {
	l, err := packet.Listen(s.path)
	if err != nil {
		return fmt.Errorf("zds: listen %s: %w", s.path, err)
	}
	defer context.AfterFunc(ctx, func() { l.Close() })()
	defer l.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	return s.accept(ctx, l, &wg)
}

func (s *Server) accept(ctx context.Context, l *packet.Listener, wg *sync.WaitGroup) error {
	var pace pacer
	for {
		conn, err := l.AcceptUnix()
		if ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("zds: accept: %w", err)
		}
		if err == nil {
			wg.Go(func() { s.serve(ctx, conn) })
		} else {
			s.cfg.Log.Error("accept of a ztunnel failed", "error", err)
		}
		sleep(ctx, pace.next(time.Now()))
	}
}

// pacer allows five connections per second, so that a ztunnel that crashes at
// once cannot keep the agent busy with snapshots.
type pacer struct{ last [5]time.Time }

// next records an event and returns how long to wait before the next one.
func (p *pacer) next(now time.Time) time.Duration {
	copy(p.last[:], p.last[1:])
	p.last[len(p.last)-1] = now
	return max(0, p.last[0].Add(time.Second).Sub(now))
}

// serve runs one ztunnel's connection.
func (s *Server) serve(ctx context.Context, conn *net.UnixConn) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	s.mu.Lock()
	s.seq++
	p := newPeer(conn, s.cfg, s.seq)
	s.peers = append(s.peers, p)
	s.changedLocked()
	s.mu.Unlock()
	err := p.run(ctx)
	s.remove(p)
	if ctx.Err() == nil {
		p.log.Warn("ztunnel disconnected", "error", err)
	}
}

// remove forgets a peer. When it was the newest, the one before takes its place
// and is given the pods that only the dead one knew.
func (s *Server) remove(p *peer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.Index(s.peers, p)
	s.peers = slices.Delete(s.peers, i, i+1)
	if i == len(s.peers) && i > 0 {
		s.peers[i-1].resync()
	}
	s.changedLocked()
}

func (s *Server) changedLocked() {
	if s.cfg.Connected != nil {
		s.cfg.Connected(len(s.peers))
	}
}

// newest returns the newest peer that has not failed yet in this request.
func (s *Server) newest(failed []*peer) *peer {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range slices.Backward(s.peers) {
		if !slices.Contains(failed, p) {
			return p
		}
	}
	return nil
}

// Add gives a pod to the newest ztunnel and waits for its answer: nil, a
// *RefusedError, ErrTimeout, ErrNoZtunnel or ctx's error. When the newest one
// dies meanwhile, the one before it gets the pod. ns stays the caller's.
func (s *Server) Add(ctx context.Context, uid mesh.PodUID, info mesh.PodInfo, ns *netns.NS) error {
	var failed []*peer
	for {
		p := s.newest(failed)
		if p == nil {
			return fmt.Errorf("add pod %s (%s): %w", info, uid, ErrNoZtunnel)
		}
		dup, err := ns.Dup()
		if err != nil {
			return fmt.Errorf("add pod %s (%s): %w", info, uid, err)
		}
		err = p.do(ctx, &request{workload: Workload{uid, info, dup}, kind: kindAdd})
		if errors.Is(err, errGone) {
			failed = append(failed, p)
			continue
		}
		if err != nil {
			return fmt.Errorf("add pod %s (%s): %w", info, uid, err)
		}
		return nil
	}
}

// Delete tells every ztunnel that a pod is gone and waits for their answers. With
// none connected there is nobody to tell: the next one gets a snapshot without it.
func (s *Server) Delete(ctx context.Context, uid mesh.PodUID) error {
	s.mu.Lock()
	peers := slices.Clone(s.peers)
	s.mu.Unlock()
	errs := make([]error, len(peers))
	var wg sync.WaitGroup
	for i, p := range peers {
		wg.Go(func() { errs[i] = p.do(ctx, &request{workload: Workload{UID: uid}, kind: kindDelete}) })
	}
	wg.Wait()
	errs = slices.DeleteFunc(errs, func(err error) bool { return errors.Is(err, errGone) })
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("delete pod %s: %w", uid, err)
	}
	return nil
}
