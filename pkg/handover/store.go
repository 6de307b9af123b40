package handover

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/packet"
)

// StoreConfig configures a Store. The zero value is fine.
type StoreConfig struct {
	Log *slog.Logger
	// Known says whether a pod is one whose sockets are to be kept; nil = every
	// one is. It must not call the Store.
	Known func(mesh.PodUID) bool
}

// Store is the end that outlives ztunnels.
type Store struct {
	cfg StoreConfig

	mu       sync.Mutex
	pods     map[mesh.PodUID]*sockets
	sections map[string]int // sealed memfds
	clients  []*peer        // oldest first; who has not reported yet is the newest
}

// sockets are those of one pod.
type sockets struct {
	by        *peer // who deposited them
	namespace string
	fds       map[string]int
}

// peer is one connected ztunnel.
type peer struct {
	conn *net.UnixConn
	pid  int

	// Guarded by Store.mu.
	status     Status
	superseded bool
	tell       chan bool // the newest value of superseded that is not sent yet
	writing    sync.Mutex
}

// NewStore returns an empty store.
func NewStore(cfg StoreConfig) *Store {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Store{cfg: cfg, pods: map[mesh.PodUID]*sockets{}, sections: map[string]int{}}
}

// Run listens at path until ctx ends, and then lets go of everything.
func (s *Store) Run(ctx context.Context, path string) error {
	defer s.Clear()
	l, err := packet.Listen(path)
	if err != nil {
		return fmt.Errorf("handover: listen %s: %w", path, err)
	}
	defer l.Close()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := l.AcceptUnix()
		if ctx.Err() != nil {
			if err == nil {
				c.Close()
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("handover: accept: %w", err)
		}
		wg.Go(func() { s.Serve(ctx, c) })
	}
}

// Serve serves one connection until it or ctx ends, and closes it.
func (s *Store) Serve(ctx context.Context, c *net.UnixConn) {
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	pid, err := checkPeer(c)
	if err != nil {
		s.cfg.Log.Error("connection refused", "error", err)
		return
	}
	p := &peer{conn: c, pid: pid, status: Status{State: Starting}, tell: make(chan bool, 1)}
	s.add(p)
	var teller sync.WaitGroup
	teller.Go(func() { p.tellSuperseded() })
	err = s.serve(p)
	s.remove(p, ctx.Err() != nil)
	teller.Wait()
	if ctx.Err() == nil && !errors.Is(err, io.EOF) {
		s.cfg.Log.Warn("connection to a ztunnel ended", "pid", pid, "error", err)
	}
}

func (s *Store) serve(p *peer) error {
	for {
		m, fds, err := read(p.conn)
		if err != nil {
			return err
		}
		answer, out := s.handle(p, m, fds)
		answer.Op, answer.ID = opAnswer, m.ID
		p.writing.Lock()
		err = write(p.conn, answer, out)
		p.writing.Unlock()
		packet.Close(out...)
		if err != nil {
			return err
		}
	}
}

// handle carries out one request. It owns in; out is the caller's.
func (s *Store) handle(p *peer, m message, in []int) (answer message, out []int) {
	var err error
	switch m.Op {
	case opPut:
		err = s.put(p, m, in)
	case opTake:
		answer.Names, out, err = s.take(m)
	case opDrop:
		s.dropOf(m)
	case opSave:
		err = s.save(p, m.Section, in[0])
	case opLoad:
		out, err = s.load(m.Section)
		if len(out) > 0 {
			answer.Section = m.Section
		}
	case opReport:
		s.report(p, *m.Status)
	default:
		err = fmt.Errorf("%w: %s is no request", packet.ErrMalformed, m.Op)
		packet.Close(in...)
	}
	if err != nil {
		s.cfg.Log.Warn("request refused", "request", string(m.Op), "pod", m.Pod, "section", m.Section, "error", err)
		answer.Error = err.Error()
	}
	return answer, out
}

// put keeps a pod's sockets. One that is there already under its name is replaced,
// unless it is of a younger ztunnel, which found an empty store and opened its own:
// the older one's would be held beside them when it has left, and the kernel would
// go on giving them a share of the connections. Sockets of another network namespace
// are of an earlier life of the pod.
func (s *Store) put(p *peer, m message, fds []int) error {
	pod := mesh.PodUID(m.Pod)
	if err := checkSockets(fds); err != nil {
		packet.Close(fds...)
		return err
	}
	if !s.known(pod) {
		packet.Close(fds...)
		return errForeign
	}
	if err := s.keep(p, pod, m, fds); err != nil {
		return err
	}
	if !s.known(pod) { // it has left meanwhile, and been dropped before there was anything
		s.Drop(pod)
		return errForeign
	}
	return nil
}

var (
	errForeign = errors.New("the pod is not in the mesh")
	errYounger = errors.New("a younger ztunnel has deposited its own")
)

func (s *Store) known(pod mesh.PodUID) bool { return s.cfg.Known == nil || s.cfg.Known(pod) }

// keep is put for a pod that is known.
func (s *Store) keep(p *peer, pod mesh.PodUID, m message, fds []int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	held := s.pods[pod]
	if held != nil && held.namespace == m.Namespace && slices.Contains(s.clients, held.by) && byAge(p, held.by) < 0 {
		packet.Close(fds...)
		return errYounger
	}
	if held == nil && len(s.pods) == maxPods {
		packet.Close(fds...)
		return fmt.Errorf("more than %d pods", maxPods)
	}
	if held != nil && held.namespace != m.Namespace {
		s.dropLocked(pod)
		held = nil
	}
	if held == nil {
		held = &sockets{namespace: m.Namespace, fds: map[string]int{}}
		s.pods[pod] = held
	}
	held.by = p
	for i, name := range m.Names {
		old, had := held.fds[name]
		switch {
		case had:
			unix.Close(old)
		case len(held.fds) == maxSockets:
			unix.Close(fds[i])
			continue
		}
		held.fds[name] = fds[i]
	}
	return nil
}

func checkSockets(fds []int) error {
	for _, fd := range fds {
		if _, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil {
			return fmt.Errorf("not a socket: %w", err)
		}
	}
	return nil
}

// take returns duplicates of a pod's sockets.
func (s *Store) take(m message) (names []string, fds []int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	held := s.pods[mesh.PodUID(m.Pod)]
	if held == nil {
		return nil, nil, nil
	}
	if held.namespace != m.Namespace {
		s.dropLocked(mesh.PodUID(m.Pod))
		return nil, nil, nil
	}
	for _, name := range slices.Sorted(maps.Keys(held.fds)) {
		fd, err := duplicate(held.fds[name])
		if err != nil {
			packet.Close(fds...)
			return nil, nil, err
		}
		names, fds = append(names, name), append(fds, fd)
	}
	return names, fds, nil
}

func duplicate(fd int) (int, error) {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	return dup, os.NewSyscallError("dup", err)
}

// dropOf lets go of a pod's sockets, unless they are of another life of it.
func (s *Store) dropOf(m message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if held := s.pods[mesh.PodUID(m.Pod)]; held != nil && held.namespace == m.Namespace {
		s.dropLocked(mesh.PodUID(m.Pod))
	}
}

// Drop lets go of a pod's sockets.
func (s *Store) Drop(pod mesh.PodUID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dropLocked(pod)
}

func (s *Store) dropLocked(pod mesh.PodUID) {
	held := s.pods[pod]
	if held == nil {
		return
	}
	for _, fd := range held.fds {
		unix.Close(fd)
	}
	delete(s.pods, pod)
}

// Clear lets go of everything.
func (s *Store) Clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for pod := range s.pods {
		s.dropLocked(pod)
	}
	for name, fd := range s.sections {
		unix.Close(fd)
		delete(s.sections, name)
	}
}

// save keeps a section. A ztunnel that has a successor knows nothing that the
// successor does not.
func (s *Store) save(p *peer, name string, fd int) error {
	_, err := checkSealed(fd)
	s.mu.Lock()
	defer s.mu.Unlock()
	old, had := s.sections[name]
	switch {
	case err != nil:
	case p.superseded:
		err = errors.New("a successor serves")
	case !had && len(s.sections) == maxSections:
		err = fmt.Errorf("more than %d sections", maxSections)
	}
	if err != nil {
		unix.Close(fd)
		return err
	}
	if had {
		unix.Close(old)
	}
	s.sections[name] = fd
	return nil
}

func (s *Store) load(name string) ([]int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fd, ok := s.sections[name]
	if !ok {
		return nil, nil
	}
	dup, err := duplicate(fd)
	if err != nil {
		return nil, err
	}
	return []int{dup}, nil
}

func (s *Store) report(p *peer, now Status) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p.status = now
	slices.SortStableFunc(s.clients, byAge)
	s.rankLocked()
}

// byAge compares two ztunnels by when they started.
func byAge(a, b *peer) int {
	newest := time.Duration(math.MaxInt64)
	return cmp.Compare(cmp.Or(a.status.Born, newest), cmp.Or(b.status.Born, newest))
}

func (s *Store) add(p *peer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clients = append(s.clients, p)
}

// remove forgets a ztunnel. When it is the store that ends, nothing has changed
// among the ztunnels.
func (s *Store) remove(p *peer, ending bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clients = slices.DeleteFunc(s.clients, func(o *peer) bool { return o == p })
	close(p.tell)
	if !ending {
		s.rankLocked()
	}
}

// rankLocked finds out anew who is superseded, and has them told.
func (s *Store) rankLocked() {
	newer := false
	for _, p := range slices.Backward(s.clients) {
		if p.superseded != newer {
			p.superseded = newer
			select {
			case <-p.tell: // not sent yet, and out of date
			default:
			}
			p.tell <- newer
		}
		newer = newer || p.status.State == Serving
	}
}

func (p *peer) tellSuperseded() {
	for now := range p.tell {
		p.writing.Lock()
		err := write(p.conn, message{Op: opSuperseded, On: now}, nil)
		p.writing.Unlock()
		if err != nil {
			p.conn.Close()
		}
	}
}

// Held returns of how many pods there are sockets, and how many sockets.
func (s *Store) Held() (pods, sockets int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, held := range s.pods {
		sockets += len(held.fds)
	}
	return len(s.pods), sockets
}

// Clients returns the connected ztunnels, the oldest first.
func (s *Store) Clients() []ClientStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]ClientStatus, len(s.clients))
	for i, p := range s.clients {
		list[i] = ClientStatus{p.status, p.pid, p.superseded}
	}
	return list
}
