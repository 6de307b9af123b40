package workloads

import (
	"context"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// Store holds everything that is known. The zero Store is not usable; see New.
type Store struct{}

// New returns an empty store.
func New() *Store { return &Store{} }

func (s *Store) View() View                                                       { return s }
func (s *Store) Apply(u Update)                                                   {}
func (s *Store) Wait(ctx context.Context, cond func(View) bool) error             { return ctx.Err() }
func (s *Store) Changed() <-chan struct{}                                         { return nil }
func (s *Store) PolicyChanged() <-chan struct{}                                   { return nil }
func (s *Store) PolicyVersion() uint64                                            { return 0 }
func (s *Store) Subscribe(f func(Change)) (cancel func())                         { return func() {} }
func (s *Store) Len() (workloads, services, policies int)                         { return }
func (s *Store) Workload(uid mesh.UID) *mesh.Workload                             { return nil }
func (s *Store) WorkloadByAddr(addr mesh.NetAddr) *mesh.Workload                  { return nil }
func (s *Store) WorkloadByInfo(info mesh.PodInfo, node string) *mesh.Workload     { return nil }
func (s *Store) WorkloadByHost(name mesh.ServiceName) *mesh.Workload              { return nil }
func (s *Store) Service(name mesh.ServiceName) *mesh.Service                      { return nil }
func (s *Store) ServicesByHost(host string) []*mesh.Service                       { return nil }
func (s *Store) ServiceByVIP(addr mesh.NetAddr, clientNS string) *mesh.Service    { return nil }
func (s *Store) Endpoints(name mesh.ServiceName) []Endpoint                       { return nil }
func (s *Store) Policy(name mesh.PolicyName) *mesh.Policy                         { return nil }
func (s *Store) PoliciesFor(w *mesh.Workload) ([]*mesh.Policy, []mesh.PolicyName) { return nil, nil }
