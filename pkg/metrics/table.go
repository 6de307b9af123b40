package metrics

import (
	"context"
	"sync"
	"time"
)

// Config configures a family.
type Config struct {
	// Alive reports whether some pod of the workload exists; nil = nothing expires.
	Alive func(namespace, workload string) bool
	Idle  time.Duration // a departed workload's series live this long after their last use; 0 = 5 min
	// MaxSeries bounds the number of label sets, some of which peers can invent;
	// what does not fit is counted under unknown workloads. 0 = 20000.
	MaxSeries int
}

// TCPConfig configures a TCP family.
type TCPConfig = Config

// maxFlows bounds the cache in front of the series.
const maxFlows = 8192

// sweepEvery is how often departed workloads are looked for.
const sweepEvery = 30 * time.Second

// member is what a table holds.
type member interface {
	labels() *labelSet
	uses() uint64          // a number that grows whenever the series is used
	drop(uses uint64) bool // marks it dropped, unless it is in use or was used since
	revive()               // takes the mark back
}

// table finds series by flow and, behind that, by labels.
type table[F comparable, S member] struct {
	cfg      Config
	resolve  func(F) *labelSet
	overflow func(F) F // the flow without what a peer can invent
	build    func(*labelSet) S

	mu     sync.RWMutex
	flows  map[F]S
	series map[string]*row[S]
}

// row is a series with its place in the table.
type row[S member] struct {
	series S
	uses   uint64    // at the last sweep
	since  time.Time // when uses was first seen
}

func newTable[F comparable, S member](cfg Config, resolve func(F) *labelSet, overflow func(F) F, build func(*labelSet) S) *table[F, S] {
	if cfg.Idle == 0 {
		cfg.Idle = 5 * time.Minute
	}
	if cfg.MaxSeries == 0 {
		cfg.MaxSeries = 20000
	}
	return &table[F, S]{
		cfg: cfg, resolve: resolve, overflow: overflow, build: build,
		flows: map[F]S{}, series: map[string]*row[S]{},
	}
}

// get returns the series of a flow.
func (t *table[F, S]) get(f F) S {
	t.mu.RLock()
	s, ok := t.flows[f]
	t.mu.RUnlock()
	if ok {
		return s
	}
	labels := t.resolve(f)
	key := labels.key()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.series[key] == nil && len(t.series) >= t.cfg.MaxSeries {
		labels = t.resolve(t.overflow(f))
		key = labels.key()
	}
	s = t.atLocked(key, labels)
	if len(t.flows) >= maxFlows {
		clear(t.flows)
	}
	t.flows[f] = s
	return s
}

// at returns the series with these labels.
func (t *table[F, S]) at(labels *labelSet) S {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.atLocked(labels.key(), labels)
}

func (t *table[F, S]) atLocked(key string, labels *labelSet) S {
	r := t.series[key]
	if r == nil {
		r = &row[S]{series: t.build(labels), since: time.Now()}
		t.series[key] = r
	}
	return r.series
}

// all returns every series.
func (t *table[F, S]) all() []S {
	t.mu.RLock()
	defer t.mu.RUnlock()
	out := make([]S, 0, len(t.series))
	for _, r := range t.series {
		out = append(out, r.series)
	}
	return out
}

// run sweeps until ctx ends.
func (t *table[F, S]) run(ctx context.Context) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			t.sweep(now)
		}
	}
}

// sweep drops unused series of departed workloads. The cache of flows is emptied
// too, because it holds on to workloads that have been replaced.
func (t *table[F, S]) sweep(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(t.flows)
	for key, r := range t.series {
		if n := r.series.uses(); n != r.uses {
			r.uses, r.since = n, now
			continue
		}
		idle := t.cfg.Alive != nil && now.Sub(r.since) >= t.cfg.Idle
		if idle && r.series.labels().gone(t.cfg.Alive) && r.series.drop(r.uses) {
			delete(t.series, key)
		}
	}
}

// restore puts a series back that was dropped while somebody held it, and returns
// the one that is in the table now.
func (t *table[F, S]) restore(s S) S {
	key := s.labels().key()
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.series[key]
	if r == nil {
		r = &row[S]{series: s, since: time.Now()}
		t.series[key] = r
		s.revive()
	}
	return r.series
}
