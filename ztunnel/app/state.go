package app

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"iter"
	"log/slog"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/culvert-mesh/culvert/pkg/certs"
	"github.com/culvert-mesh/culvert/pkg/handover"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	wireauthz "github.com/culvert-mesh/culvert/pkg/wire/authz"
	"github.com/culvert-mesh/culvert/pkg/wire/workload"
	"github.com/culvert-mesh/culvert/pkg/workloads"
	"github.com/culvert-mesh/culvert/pkg/xds"
	"github.com/culvert-mesh/culvert/ztunnel/proxy"
)

// What a ztunnel knows lies in the store in sections, so that a small change costs
// a small memfd. Each holds resources as they came over the wire, with the names
// and versions by which the control plane knows them: a successor goes on as after
// a lost connection. Pods are not among them, the node agent tells them at once.
const (
	sectionAddresses    = "addresses" // workloads and services
	sectionPolicies     = "policies"
	sectionCertificates = "certificates" // with their keys
	sectionContact      = "contact"      // no records: when the control plane was last heard of
)

// Waits of the saver.
const (
	settleSmall   = 100 * time.Millisecond // between two saves of a small section
	settleLarge   = time.Second            // of the large one
	contactPeriod = 5 * time.Second        // between two notes of the last contact
	saveShare     = 20                     // a save takes at most one part in so many of the time
)

// section is one part of what is known.
type section struct {
	name    string
	settle  time.Duration
	records func() iter.Seq[handover.Record]
	known   func() bool // there is something to save: nothing must not take its place
	dirty   atomic.Bool
	ready   time.Time // when the present change is to be saved; zero = not decided
	due     time.Time // not saved before
}

// saver deposits what has changed. poke may be called from anywhere.
type saver struct {
	stores   handover.Stores
	origin   handover.Origin
	heard    func() time.Time
	certs    func() uint64 // changes when a certificate does
	log      *slog.Logger
	sections []*section
	wake     chan struct{}
}

func (s *saver) add(name string, settle time.Duration, known func() bool, records func() iter.Seq[handover.Record]) {
	s.sections = append(s.sections, &section{name: name, settle: settle, known: known, records: records})
}

// poke notes that a section has changed; "" = all of them.
func (s *saver) poke(name string) {
	for _, sec := range s.sections {
		if name == "" || name == sec.name {
			sec.dirty.Store(true)
		}
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Run saves until ctx ends.
func (s *saver) Run(ctx context.Context) error {
	contact := time.NewTicker(contactPeriod)
	defer contact.Stop()
	look := time.NewTicker(settleLarge)
	defer look.Stop()
	var issued uint64
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-contact.C:
			s.poke(sectionContact)
		case <-look.C:
			if now := s.certs(); now != issued {
				issued = now
				s.poke(sectionCertificates)
			}
		case <-s.wake:
		case <-timer.C:
		}
		if next := s.saveDue(time.Now()); next > 0 {
			timer.Reset(next)
		}
	}
}

// saveDue saves what has changed and may be saved again, and returns when to come
// back for the rest, 0 for only when something changes. The time that a save takes
// is that of the large section's encoding; it is paid for by waiting.
func (s *saver) saveDue(now time.Time) (next time.Duration) {
	for _, sec := range s.sections {
		if !sec.dirty.Load() || !sec.known() {
			continue
		}
		if !s.stores.Attached() || s.stores.Superseded() {
			continue // it is saved when there is a store that wants it
		}
		if sec.ready.IsZero() { // of a burst of changes this is the first
			settle := sec.settle
			if sec.due.IsZero() {
				settle = min(settle, settleSmall) // the first time: until then a crash is a cold start
			}
			if sec.ready = now.Add(settle); sec.ready.Before(sec.due) {
				sec.ready = sec.due
			}
		}
		if wait := sec.ready.Sub(now); wait > 0 {
			if next == 0 || wait < next {
				next = wait
			}
			continue
		}
		sec.dirty.Store(false)
		sec.ready = time.Time{}
		start := time.Now()
		wait := time.Duration(0)
		if err := s.save(sec); err != nil {
			s.log.Warn("state not deposited", "section", sec.name, "error", err)
			sec.dirty.Store(true) // a policy may not change again for weeks
			wait = settleLarge
		}
		wait = max(wait, saveShare*time.Since(start))
		sec.due = time.Now().Add(wait)
		if sec.dirty.Load() && (next == 0 || wait < next) {
			next = wait
		}
	}
	return next
}

func (s *saver) save(sec *section) error {
	head, records := handover.Header{Saved: time.Now(), Contact: s.heard(), Origin: s.origin}, sec.records()
	f, err := handover.Seal("culvert-"+sec.name, func(w io.Writer) error { return handover.Encode(w, head, records) })
	if err != nil {
		return err
	}
	defer f.Close()
	if !s.stores.Save(sec.name, f) && !s.stores.Superseded() { // a successor knows all that we do
		return errors.New("no store took it")
	}
	return nil
}

// buildSaver lays out what is saved. On demand only names that are in use are
// known, and they are asked for again.
func (a *App) buildSaver() {
	a.saver = &saver{stores: a.stores, origin: a.cfg.origin(), heard: a.heard, certs: a.issued, log: a.log, wake: make(chan struct{}, 1)}
	if len(a.stores) == 0 {
		return
	}
	// A ztunnel that could not load what its predecessor left knows nothing at first,
	// and leaves it where it is.
	issued := func() bool { return a.issued() != 0 }
	meshKnown := func() bool { return isClosed(a.known) }
	a.saver.add(sectionCertificates, settleSmall, issued, a.certificateRecords)
	a.saver.add(sectionContact, settleSmall, meshKnown, func() iter.Seq[handover.Record] { return func(func(handover.Record) bool) {} })
	if a.xds != nil && a.demand == nil {
		a.saver.add(sectionPolicies, settleSmall, meshKnown, a.policyRecords)
		a.saver.add(sectionAddresses, settleLarge, meshKnown, a.addressRecords)
	}
}

// origin says whose knowledge ours is.
func (c Config) origin() handover.Origin {
	return handover.OriginOf(c.NodeName, c.TrustDomain, string(c.Cluster), string(c.Network))
}

// load returns a section that a predecessor left, nil for none. What somebody else
// left, of another mesh or node, is none: policies and certificates would be wrong.
func (a *App) load(section string) []byte {
	p := a.stores.Load(section)
	if from, ok := handover.From(p); ok && from != a.cfg.origin() {
		a.log.Warn("state of another node, cluster or trust domain not taken over", "section", section)
		return nil
	}
	return p
}

// heard returns up to when what we know was current.
func (a *App) heard() time.Time {
	if a.xds == nil {
		return time.Time{}
	}
	return a.xds.Heard()
}

// issued returns a number that changes when a certificate comes, goes or is renewed.
func (a *App) issued() (sum uint64) {
	a.certs.Expirations(func(id mesh.Identity, notAfter time.Time) bool {
		h := fnv.New64a()
		fmt.Fprint(h, id, notAfter.UnixNano())
		sum += h.Sum64()
		return true
	})
	return sum
}

// applied is told of every response of the control plane.
func (a *App) applied(typeURL string) {
	switch typeURL {
	case workload.TypeURL:
		a.saver.poke(sectionAddresses)
	case wireauthz.TypeURL:
		a.saver.poke(sectionPolicies)
	}
}

// addressRecords yields workloads and services as the control plane told them. The
// versions are read first: a body may be newer than its version, which the control
// plane mends, and never older.
func (a *App) addressRecords() iter.Seq[handover.Record] {
	held := a.xds.Held(workload.TypeURL)
	return func(yield func(handover.Record) bool) {
		give := giver{held: held, yield: yield}
		for w := range a.store.Workloads() {
			m := &workload.Address{Type: &workload.Address_Workload{Workload: workload.FromWorkload(w)}}
			if !give.record(string(w.UID), m) {
				return
			}
		}
		for s := range a.store.Services() {
			m := &workload.Address{Type: &workload.Address_Service{Service: workload.FromService(s)}}
			if !give.record(s.Key().String(), m) {
				return
			}
		}
	}
}

func (a *App) policyRecords() iter.Seq[handover.Record] {
	held := a.xds.Held(wireauthz.TypeURL)
	return func(yield func(handover.Record) bool) {
		give := giver{held: held, yield: yield}
		for p := range a.store.Policies() {
			if !give.record(p.Name.String(), wireauthz.FromMesh(p)) {
				return
			}
		}
	}
}

// giver yields records, each in the memory of the one before.
type giver struct {
	held  map[string]string
	yield func(handover.Record) bool
	body  []byte
}

// record leaves out what did not come from the control plane.
func (g *giver) record(name string, m proto.Message) bool {
	version, ok := g.held[name]
	if !ok {
		return true
	}
	body, err := proto.MarshalOptions{}.MarshalAppend(g.body[:0], m)
	if err != nil {
		return true // it is asked for again
	}
	g.body = body
	return g.yield(handover.Record{Name: name, Version: version, Body: body})
}

func (a *App) certificateRecords() iter.Seq[handover.Record] {
	return func(yield func(handover.Record) bool) {
		if body, err := a.certs.Export(); err == nil {
			yield(handover.Record{Name: sectionCertificates, Body: body})
		}
	}
}

// restored says what was taken over; the zero value is nothing.
type restored struct {
	Contact  time.Time // when the predecessor last heard of the control plane
	Policies int
	Known    int // workloads and services
	Took     time.Duration
}

// restore takes over what a predecessor left, before anything runs. Certificates
// are of use by themselves; workloads and policies only together.
func (a *App) restore() {
	start := time.Now()
	if err := a.restoreCertificates(); err != nil {
		a.log.Warn("certificates of the predecessor not taken over", "error", err)
	}
	if a.xds == nil || a.demand != nil {
		return
	}
	policies, addresses := a.load(sectionPolicies), a.load(sectionAddresses)
	if policies == nil || addresses == nil {
		return
	}
	r, err := a.restoreMesh(policies, addresses)
	if err != nil {
		a.log.Warn("knowledge of the predecessor not taken over", "error", err)
		return
	}
	r.Took = time.Since(start)
	a.restored.Store(&r)
	a.log.Info("going on with what the predecessor knew", "age", time.Since(r.Contact).Round(time.Millisecond),
		"workloads_and_services", r.Known, "policies", r.Policies, "took", r.Took)
	a.know()
}

func (a *App) restoreCertificates() error {
	p := a.load(sectionCertificates)
	if p == nil {
		return nil
	}
	_, err := handover.Decode(p, func(r handover.Record) error { return a.certs.Import(r.Body) })
	return err
}

func (a *App) restoreMesh(policies, addresses []byte) (r restored, err error) {
	var heads [2]handover.Header
	told, known := map[string]string{}, map[string]string{}
	if heads[0], err = handover.Decode(policies, func(rec handover.Record) error { return a.restorePolicy(told, rec) }); err != nil {
		return r, fmt.Errorf("%s: %w", sectionPolicies, err)
	}
	b := batch{store: a.store, known: known}
	if heads[1], err = handover.Decode(addresses, b.take); err != nil {
		return r, fmt.Errorf("%s: %w", sectionAddresses, err)
	}
	b.flush()
	r = restored{Contact: heads[1].Contact, Policies: len(told), Known: len(known)}
	if p := a.load(sectionContact); p != nil {
		if h, err := handover.Decode(p, func(handover.Record) error { return nil }); err == nil && h.Contact.After(r.Contact) {
			r.Contact = h.Contact
		}
	}
	a.xds.Restore(wireauthz.TypeURL, told, r.Contact)
	a.xds.Restore(workload.TypeURL, known, r.Contact)
	return r, nil
}

func (a *App) restorePolicy(told map[string]string, rec handover.Record) error {
	var m wireauthz.Authorization
	if err := proto.Unmarshal(rec.Body, &m); err != nil {
		return err
	}
	p, err := wireauthz.ToMesh(&m)
	if err != nil {
		return err
	}
	a.store.Apply(workloads.Update{Policies: []*mesh.Policy{p}})
	told[rec.Name] = rec.Version
	return nil
}

// batch applies workloads and services many at a time.
type batch struct {
	store  *workloads.Store
	known  map[string]string
	update workloads.Update
}

// batchSize is how many resources are decoded before they are applied.
const batchSize = 65536

func (b *batch) take(rec handover.Record) error {
	var m workload.Address
	if err := proto.Unmarshal(rec.Body, &m); err != nil {
		return err
	}
	w, s, err := workload.ToMesh(&m)
	switch {
	case err != nil:
		return err
	case w != nil:
		b.update.Workloads = append(b.update.Workloads, w)
	default:
		b.update.Services = append(b.update.Services, s)
	}
	b.known[rec.Name] = rec.Version
	if len(b.update.Workloads)+len(b.update.Services) >= batchSize {
		b.flush()
	}
	return nil
}

func (b *batch) flush() {
	b.store.Apply(b.update)
	b.update = workloads.Update{}
}

var _ proxy.Absence = (*absence)(nil)

// absence tells the proxies how things stand without the control plane.
type absence struct {
	xds   *xds.Client
	certs *certs.Cache
}

func (a *absence) Away() time.Duration        { return a.xds.Away() }
func (a *absence) Held(id mesh.Identity) bool { return a.certs.Held(id) }
