// Package config is what a waypoint runs on: immutable values that the xDS
// decoder builds and the data path reads. It is the contract between the two;
// neither knows the other.
//
//	CONNECT authority ─▶ Destination ─ by source namespace ─▶ Routes ─▶ Route ─▶ Cluster
//	                         └ HTTP and network filters
//
// A Snapshot and everything that it reaches is never changed after it was
// published, so readers need no lock. A new configuration is a new Snapshot
// that shares what has not changed.
package config

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/waypoint/filter"
	"github.com/culvert-mesh/culvert/waypoint/http"
)

// Protocol is what clients speak to a destination.
type Protocol uint8

// Protocols. Auto decides by a connection's first bytes.
const (
	Auto Protocol = iota
	HTTP
	TCP
)

func (p Protocol) String() string { return [...]string{"AUTO", "HTTP", "TCP"}[p] }

// Destination is what one CONNECT authority stands for: a port of a service, or
// a workload with all its ports.
type Destination struct {
	Name      string // of the resource
	Addresses []mesh.NetAddr

	Service mesh.ServiceName // zero for a workload
	Port    uint16           // of the service; 0 for a workload
	UID     mesh.UID         // of the workload; "" for a service

	Protocol Protocol
	Tables   []SourceTable // route tables for clients of certain namespaces
	Routes   string        // route table for all others; "" = everything goes to Cluster
	Cluster  string        // for TCP, and for HTTP without routes

	HTTPFilters    filter.Chain
	NetworkFilters filter.Network
}

// IsWorkload reports whether d is a workload and not a service.
func (d *Destination) IsWorkload() bool { return d.UID != "" }

// RoutesFor names the route table for a client of that namespace.
func (d *Destination) RoutesFor(namespace string) string {
	for _, t := range d.Tables {
		if slices.Contains(t.Namespaces, namespace) {
			return t.Routes
		}
	}
	return d.Routes
}

// SourceTable is a route table for clients of some namespaces.
type SourceTable struct {
	Namespaces []string
	Routes     string
}

// Routes is a compiled route table.
type Routes interface {
	// Route returns the first route that matches, nil for none.
	Route(req *http.Request) *Route
}

// BalancePolicy is how an endpoint is picked.
type BalancePolicy uint8

// Policies of balancing.
const (
	RoundRobin BalancePolicy = iota
	LeastRequest
	Random
)

func (p BalancePolicy) String() string {
	return [...]string{"ROUND_ROBIN", "LEAST_REQUEST", "RANDOM"}[p]
}

// Cluster is a backend: a port of a service and how to reach it.
type Cluster struct {
	Name           string
	Service        mesh.ServiceName
	Port           uint16
	Balance        BalancePolicy
	ConnectTimeout time.Duration // 0 = the waypoint's default
}

// Snapshot is one whole configuration.
type Snapshot struct {
	Destinations map[string]*Destination // by resource name
	Routes       map[string]Routes       // by name
	Clusters     map[string]*Cluster     // by name

	byService  map[serviceAddr]*Destination
	byWorkload map[mesh.NetAddr]*Destination
}

type serviceAddr struct {
	addr mesh.NetAddr
	port uint16
}

// NewSnapshot indexes the destinations by address. The maps become the snapshot's.
func NewSnapshot(d map[string]*Destination, r map[string]Routes, c map[string]*Cluster) *Snapshot {
	s := &Snapshot{Destinations: d, Routes: r, Clusters: c,
		byService: make(map[serviceAddr]*Destination), byWorkload: make(map[mesh.NetAddr]*Destination)}
	for _, dest := range d {
		for _, a := range dest.Addresses {
			s.index(dest, a)
		}
	}
	return s
}

// index adds one address. Two destinations may claim one for a moment while
// objects are replaced; the smaller name wins, so that all replicas agree.
func (s *Snapshot) index(d *Destination, a mesh.NetAddr) {
	if d.IsWorkload() {
		if old := s.byWorkload[a]; old == nil || d.Name < old.Name {
			s.byWorkload[a] = d
		}
		return
	}
	key := serviceAddr{a, d.Port}
	if old := s.byService[key]; old == nil || d.Name < old.Name {
		s.byService[key] = d
	}
}

// Lookup returns the destination at an address, nil for one that is not served.
func (s *Snapshot) Lookup(a mesh.NetAddr, port uint16) *Destination {
	if d := s.byService[serviceAddr{a, port}]; d != nil {
		return d
	}
	return s.byWorkload[a]
}

// LookupHost returns the destination of a service's hostname and port. Of
// several namespaces the first by name wins.
func (s *Snapshot) LookupHost(host string, port uint16) *Destination {
	var found *Destination
	for _, d := range s.Destinations {
		if d.Service.Hostname == host && d.Port == port && (found == nil || d.Name < found.Name) {
			found = d
		}
	}
	return found
}

// Store holds the present snapshot. It is safe for concurrent use.
type Store struct {
	p atomic.Pointer[Snapshot]

	mu      sync.Mutex
	changed chan struct{}
}

// NewStore returns a store with an empty snapshot.
func NewStore() *Store {
	s := &Store{changed: make(chan struct{})}
	s.p.Store(NewSnapshot(nil, nil, nil))
	return s
}

// Load returns the present snapshot.
func (s *Store) Load() *Snapshot { return s.p.Load() }

// Publish replaces the snapshot.
func (s *Store) Publish(snap *Snapshot) {
	s.p.Store(snap)
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.changed)
	s.changed = make(chan struct{})
}

// Changed returns a channel that is closed at the next Publish.
func (s *Store) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}
