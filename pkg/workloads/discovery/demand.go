package discovery

import (
	"context"
	"slices"
	"sync"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/wire/workload"
	"github.com/culvert-mesh/culvert/pkg/workloads"
	"github.com/culvert-mesh/culvert/pkg/xds"
)

// Demand fills a store with what somebody has asked for, instead of with
// everything: with services by name, and with services and workloads by address.
//
//	View  ── a lookup finds nothing, and its name was never asked for ──▶ Missing
//	Known ── subscribes to the names and waits until each is answered ──▶ decide again
//
// The control plane answers every name, if only with its absence; both are
// remembered and kept current by the subscription. Names that mean nothing are
// bounded: the oldest are forgotten. A Demand is safe for concurrent use.
type Demand struct {
	store *workloads.Store

	mu          sync.Mutex
	subscribe   func(names ...string)
	unsubscribe func(names ...string)
	asked       map[string]*question
	absent      []string // names answered with their absence, oldest first
	maxAbsent   int
}

// question is one name that was asked for.
type question struct {
	answered chan struct{} // closed by the first answer
	absent   bool          // the latest answer
	listed   bool          // in Demand.absent
}

// maxAbsent bounds how many names without meaning are remembered: the addresses
// outside the mesh that programs have dialled.
const maxAbsent = 8192

// NewDemand returns a demand for store. Nothing can be asked before Attach.
func NewDemand(store *workloads.Store) *Demand {
	return &Demand{store: store, asked: map[string]*question{}, maxAbsent: maxAbsent}
}

// Attach says how names are subscribed to.
func (d *Demand) Attach(c *xds.Client) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.subscribe = func(names ...string) { c.Subscribe(workload.TypeURL, names...) }
	d.unsubscribe = func(names ...string) { c.Unsubscribe(workload.TypeURL, names...) }
}

// Addresses is the subscription to what is demanded.
func (d *Demand) Addresses() xds.Subscription {
	all := Addresses(d.store)
	return xds.Subscription{TypeURL: all.TypeURL, Handle: func(added []xds.Resource, removed []string) []xds.Rejected {
		rejected := all.Handle(added, removed)
		d.answer(added, removed)
		return rejected
	}}
}

// answer notes which questions a response answers. A resource answers by its name
// and by its aliases: upstream's control plane names it as it is named, whatever
// it was asked by. What was rejected is answered too: it will not come.
func (d *Demand) answer(added []xds.Resource, removed []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, name := range removed {
		d.answerLocked(name, true)
	}
	for _, r := range added {
		d.answerLocked(r.Name, false)
		for _, alias := range r.Aliases {
			d.answerLocked(alias, false)
		}
	}
	d.forgetLocked()
}

func (d *Demand) answerLocked(name string, absent bool) {
	q := d.asked[name]
	if q == nil {
		return
	}
	if q.absent = absent; absent && !q.listed {
		d.absent = append(d.absent, name)
		q.listed = true
	}
	select {
	case <-q.answered:
	default:
		close(q.answered)
	}
}

// forgetLocked keeps the absent names within their bound. Entries of names that
// have come to mean something since are dropped on the way.
func (d *Demand) forgetLocked() {
	if len(d.absent) <= d.maxAbsent {
		return
	}
	d.absent = slices.DeleteFunc(d.absent, func(name string) bool {
		q := d.asked[name]
		q.listed = q.absent
		return !q.absent
	})
	excess := max(0, len(d.absent)-d.maxAbsent)
	for _, name := range d.absent[:excess] {
		delete(d.asked, name)
	}
	if excess > 0 {
		d.unsubscribe(d.absent[:excess]...)
		d.absent = slices.Delete(d.absent, 0, excess)
	}
}

// Known subscribes to names and waits until each has been answered, or returns
// the cause of ctx's end.
func (d *Demand) Known(ctx context.Context, names []string) error {
	for _, q := range d.ask(names) {
		select {
		case <-q.answered:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

func (d *Demand) ask(names []string) []*question {
	d.mu.Lock()
	defer d.mu.Unlock()
	questions := make([]*question, len(names))
	var fresh []string
	for i, name := range names {
		q := d.asked[name]
		if q == nil {
			q = &question{answered: make(chan struct{})}
			d.asked[name] = q
			fresh = append(fresh, name)
		}
		questions[i] = q
	}
	if len(fresh) > 0 {
		d.subscribe(fresh...)
	}
	return questions
}

// unanswered reports whether asking for name could bring something new.
func (d *Demand) unanswered(name string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	q := d.asked[name]
	if q == nil {
		return true
	}
	select {
	case <-q.answered:
		return false
	default:
		return true
	}
}

// View returns the store as one decision sees it. It is for one goroutine.
func (d *Demand) View() *DemandView { return &DemandView{View: d.store, demand: d} }

// DemandView is a view that notes what it was asked for and did not know.
type DemandView struct {
	workloads.View
	demand  *Demand
	missing []string
}

// Missing returns the names that would have to be known for the lookups so far to
// be answered for good. It is nil when a decision made of them stands.
func (v *DemandView) Missing() []string { return v.missing }

func (v *DemandView) miss(name string) {
	if !slices.Contains(v.missing, name) && v.demand.unanswered(name) {
		v.missing = append(v.missing, name)
	}
}

// WorkloadByAddr implements workloads.View.
func (v *DemandView) WorkloadByAddr(addr mesh.NetAddr) *mesh.Workload {
	w := v.View.WorkloadByAddr(addr)
	if w == nil {
		v.miss(addr.String())
	}
	return w
}

// ServiceByVIP implements workloads.View.
func (v *DemandView) ServiceByVIP(addr mesh.NetAddr, clientNS string) *mesh.Service {
	svc := v.View.ServiceByVIP(addr, clientNS)
	if svc == nil {
		v.miss(addr.String())
	}
	return svc
}

// Service implements workloads.View.
func (v *DemandView) Service(name mesh.ServiceName) *mesh.Service {
	svc := v.View.Service(name)
	if svc == nil {
		v.miss(name.String())
	}
	return svc
}
