package workloads

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// Store holds everything that is known. It implements View. See New.
type Store struct {
	hash hasher

	byUID  table[mesh.Workload]
	byAddr table[mesh.Workload] // under each address; not those on host networks
	byPod  table[mesh.Workload] // under namespace and name
	byHost table[mesh.Workload] // under namespace and hostname

	services  table[record]
	hosts     table[hostGroup]
	byVIP     table[record]
	byCIDR    table[record]
	lengths   atomic.Pointer[[]prefixLength] // in use in byCIDR
	endpoints table[endpointSet]

	policies    table[mesh.Policy]
	byNamespace table[policyGroup] // namespaces that have policies of their own
	global      atomic.Pointer[[]*mesh.Policy]

	policyVersion atomic.Uint64
	changed       signal
	policyChanged signal
	sizes         [3]atomic.Int64

	mu sync.Mutex // one Apply at a time; guards what follows
	// seq numbers services by age.
	seq         uint64
	lengthCount map[prefixLength]int
	intern      *interner
	subscribers []*subscriber
}

var _ View = (*Store)(nil)

// record is a service and its age.
type record struct {
	*mesh.Service
	seq uint64
}

// hostGroup is the services with one hostname, oldest first.
type hostGroup struct {
	host     string
	services []*mesh.Service
	seqs     []uint64
}

// endpointSet is the workloads of one service, by UID.
type endpointSet struct {
	service mesh.ServiceName
	list    []Endpoint
}

// policyGroup is what applies to every workload of a namespace: the global
// policies and its own.
type policyGroup struct {
	namespace string
	policies  []*mesh.Policy
}

type subscriber struct{ f func(Change) }

// New returns an empty store.
func New() *Store {
	return &Store{
		hash:        newHasher(),
		intern:      newInterner(),
		lengthCount: make(map[prefixLength]int),
	}
}

// View returns the store itself: its lookups always see the newest state.
func (s *Store) View() View { return s }

// Len returns how many workloads, services and policies are known.
func (s *Store) Len() (workloads, services, policies int) {
	return int(s.sizes[0].Load()), int(s.sizes[1].Load()), int(s.sizes[2].Load())
}

// PolicyVersion grows with every change that may change a verdict on a live
// connection: a policy came, went or changed, or a known workload now names other
// policies.
func (s *Store) PolicyVersion() uint64 { return s.policyVersion.Load() }

// Changed returns a channel that is closed at the next change of anything. Get
// the channel first, then look.
func (s *Store) Changed() <-chan struct{} { return s.changed.channel() }

// PolicyChanged returns a channel that is closed when PolicyVersion next grows.
func (s *Store) PolicyChanged() <-chan struct{} { return s.policyChanged.channel() }

// Wait returns nil as soon as cond is true of the store, or the cause of ctx's
// end. cond is called now and after every change.
func (s *Store) Wait(ctx context.Context, cond func(View) bool) error {
	for {
		changed := s.Changed()
		if cond(s) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Subscribe calls f after every Apply that changed something, in order, one call
// at a time. f must be quick and must not call Apply, Subscribe or cancel.
func (s *Store) Subscribe(f func(Change)) (cancel func()) {
	sub := &subscriber{f}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.subscribers = append(s.subscribers, sub)
	return func() { s.unsubscribe(sub) }
}

func (s *Store) unsubscribe(sub *subscriber) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, other := range s.subscribers {
		if other == sub {
			s.subscribers = append(s.subscribers[:i:i], s.subscribers[i+1:]...)
			return
		}
	}
}

// signal is a channel that is closed at every event and made only when somebody
// listens.
type signal struct {
	mu sync.Mutex
	ch chan struct{} // nil: nobody listens
}

func (s *signal) channel() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch == nil {
		s.ch = make(chan struct{})
	}
	return s.ch
}

func (s *signal) fire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch != nil {
		close(s.ch)
		s.ch = nil
	}
}
