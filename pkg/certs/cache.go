package certs

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
	"github.com/culvert-mesh/culvert/pkg/run"
)

// Priority orders requests that wait for a signing call.
type Priority uint8

// From the least urgent: renewals, pods that will come, connections that wait.
const (
	Background Priority = iota
	Warmup
	RealTime
)

// CacheConfig configures a Cache. The zero value is usable.
type CacheConfig struct {
	MaxConcurrent int           // signing calls at once; 0 = 8
	CallTimeout   time.Duration // for one signing call; 0 = 10 s
	MinBackoff    time.Duration // wait after the first failure; 0 = 1 s
	MaxBackoff    time.Duration // 0 = 150 s
	Log           *slog.Logger  // nil = none
	// Issued, when set, is told of every signing call: metrics. It must not block.
	Issued func(id mesh.Identity, took time.Duration, err error)
}

// Cache is a Source that keeps what an Issuer gave and renews it in time.
//
//	          Certificate, Prefetch           due
//	(absent) ──────────────▶ queued ◀──────────────── idle (certificate or error)
//	                           │  most urgent first     ▲
//	                           ▼  at most 8 at once     │ success: due at half life
//	                        calling ────────────────────┘ failure: due after back-off
//
// However many callers wait for an identity there is one request. A certificate is
// handed out until it expires, also while its renewal fails. A failed identity
// answers with its last error at once, and demand brings its next attempt forward
// to at most demandRetry after the failure. While the CA is known not to answer,
// or the identity's last attempt failed, nobody waits longer than impatience.
type Cache struct {
	issuer Issuer
	stream Streamer // issuer, if it renews by itself
	cfg    CacheConfig
	wake   chan struct{} // something was queued or a call ended

	mu      sync.RWMutex
	entries map[mesh.Identity]*entry
	queue   []*entry // unordered; short
	calls   int
	queued  uint64 // requests ever queued, for first come first served
	silent  error  // ErrUnreachable if the CA did not answer last; nil once it does
	stopped error
}

// entry is one identity. All but id and used are guarded by Cache.mu.
type entry struct {
	id     mesh.Identity
	used   atomic.Bool // asked for since it was issued
	pinned bool        // by Prefetch

	svid      *SVID // nil until the first success
	delivered int   // by a Streamer
	err       error // of the last attempt, nil after a success
	failedAt  time.Time
	asked     time.Time // last time that a caller had to wait or was refused
	due       time.Time // of the next attempt, when idle
	backoff   *run.Backoff

	done     chan struct{}      // closed when the attempt queued or under way ends; nil when idle
	abandon  context.CancelFunc // ends the call under way; nil when there is none
	priority Priority
	order    uint64
}

// demandRetry is how soon after a failure a waiting connection makes another
// attempt worth its cost.
const demandRetry = 5 * time.Second

// impatience is how long a connection waits for an attempt that will probably fail.
const impatience = time.Second

// giveUp is how long a failing identity is retried when nobody asks for it.
const giveUp = 10 * time.Minute

// ErrUnreachable marks an Issuer's error that says nothing about the identity: the
// CA did not answer.
var ErrUnreachable = errors.New("certificate authority does not answer")

var (
	errForgotten = errors.New("identity no longer needed")
	errStopped   = errors.New("stopped")
	errWrongID   = errors.New("issuer returned a certificate for another identity")
)

// NewCache returns an empty cache. Nothing is requested before Run.
func NewCache(issuer Issuer, cfg CacheConfig) *Cache {
	if cfg.MaxConcurrent == 0 {
		cfg.MaxConcurrent = 8
	}
	if cfg.CallTimeout == 0 {
		cfg.CallTimeout = 10 * time.Second
	}
	if cfg.MinBackoff == 0 {
		cfg.MinBackoff = time.Second
	}
	if cfg.MaxBackoff == 0 {
		cfg.MaxBackoff = 150 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	c := &Cache{
		issuer:  issuer,
		cfg:     cfg,
		wake:    make(chan struct{}, 1),
		entries: make(map[mesh.Identity]*entry),
	}
	if s, ok := issuer.(Streamer); ok {
		c.stream = s
		s.Deliver(c.receive)
	}
	return c
}

// Certificate implements Source. It marks the request as RealTime.
func (c *Cache) Certificate(ctx context.Context, id mesh.Identity) (*SVID, error) {
	if svid := c.current(id); svid != nil {
		return svid, nil
	}
	e, done, err := c.demand(id)
	if err != nil {
		return nil, noCertificate(id, err)
	}
	if err := c.await(ctx, e, done); err != nil {
		return nil, noCertificate(id, err)
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	if e.valid(time.Now()) {
		return e.svid, nil
	}
	return nil, noCertificate(id, e.err)
}

// await waits for the end of an attempt, but not long for one that will probably
// fail: then it returns why.
func (c *Cache) await(ctx context.Context, e *entry, done <-chan struct{}) error {
	var late <-chan time.Time
	expected := c.expected(e)
	if expected != nil {
		timer := time.NewTimer(impatience)
		defer timer.Stop()
		late = timer.C
	}
	select {
	case <-done:
		return nil
	case <-late:
		return expected
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// expected returns with what the attempt for e will probably fail, nil for nothing.
func (c *Cache) expected(e *entry) error {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if e.err != nil {
		return e.err
	}
	return c.silent
}

// noCertificate gives an error its reason, unless the issuer has done so.
func noCertificate(id mesh.Identity, cause error) error {
	if reason.Of(cause) == reason.NoCertificate {
		return cause
	}
	return reason.New(reason.NoCertificate, "get certificate", id.String(), cause)
}

// Prefetch fetches the certificate of an identity that will be needed, ahead of
// its first connection, and keeps it renewed until Forget.
func (c *Cache) Prefetch(id mesh.Identity) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entryLocked(id)
	e.pinned = true
	if e.svid == nil && e.err == nil {
		c.enqueueLocked(e, Warmup)
	}
}

// Forget drops the certificate of an identity that is no longer needed. Callers
// that wait for it get an error.
func (c *Cache) Forget(id mesh.Identity) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.entries[id]; e != nil {
		c.dropLocked(e, errForgotten)
	}
}

// Run makes the signing calls until ctx ends, waits for those under way and
// returns nil. Callers that still wait then get an error.
func (c *Cache) Run(ctx context.Context) error {
	var calls sync.WaitGroup
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		timer.Reset(c.startCalls(ctx, &calls))
		select {
		case <-timer.C:
		case <-c.wake:
		case <-ctx.Done():
		}
	}
	calls.Wait()
	c.stop()
	return nil
}

// current returns the certificate for id if there is a valid one.
func (c *Cache) current(id mesh.Identity) *SVID {
	c.mu.RLock()
	defer c.mu.RUnlock()
	e := c.entries[id]
	if e == nil || !e.valid(time.Now()) {
		return nil
	}
	if !e.used.Load() {
		e.used.Store(true)
		c.signal() // its renewal may be overdue
	}
	return e.svid
}

// demand makes sure that an attempt for id is on its way, or says why not.
func (c *Cache) demand(id mesh.Identity) (*entry, <-chan struct{}, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped != nil {
		return nil, nil, c.stopped
	}
	e := c.entryLocked(id)
	e.used.Store(true)
	e.asked = time.Now()
	if e.done == nil && e.err != nil && time.Now().Before(minTime(e.due, e.failedAt.Add(demandRetry))) {
		return nil, nil, e.err
	}
	c.enqueueLocked(e, RealTime)
	return e, e.done, nil
}

func (c *Cache) entryLocked(id mesh.Identity) *entry {
	e := c.entries[id]
	if e == nil {
		e = &entry{id: id, backoff: run.NewBackoff(c.cfg.MinBackoff, c.cfg.MaxBackoff)}
		c.entries[id] = e
	}
	return e
}

// enqueueLocked asks for an attempt; one that is already queued gets the higher
// of the two priorities.
func (c *Cache) enqueueLocked(e *entry, p Priority) {
	switch {
	case e.done == nil:
		e.done = make(chan struct{})
		e.priority = p
		e.order = c.queued
		c.queued++
		c.queue = append(c.queue, e)
		c.signal()
	case e.priority < p:
		e.priority = p
	}
}

func (c *Cache) signal() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// startCalls queues what is due, starts as many calls as may run, and returns how
// long until something else is due.
func (c *Cache) startCalls(ctx context.Context, calls *sync.WaitGroup) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	next := c.queueDueLocked(time.Now())
	for c.calls < c.cfg.MaxConcurrent && len(c.queue) > 0 {
		e := c.popLocked()
		callCtx, cancel := context.WithTimeout(ctx, c.cfg.CallTimeout)
		e.abandon = cancel
		c.calls++
		calls.Add(1)
		go c.call(callCtx, cancel, e, e.delivered, calls)
	}
	return next
}

// queueDueLocked queues renewals and retries whose time has come. A certificate
// that nobody asked for since it was issued is not renewed; it stays until it
// expires.
func (c *Cache) queueDueLocked(now time.Time) time.Duration {
	next := time.Hour
	for _, e := range c.entries {
		switch wait := e.due.Sub(now); {
		case e.done != nil || e.due.IsZero():
		case wait > 0:
			next = min(next, wait)
		case e.pinned, e.used.Load() && (e.valid(now) || now.Sub(e.asked) < giveUp):
			c.enqueueLocked(e, Background)
		case e.valid(now):
			next = min(next, e.svid.NotAfter.Sub(now))
		default:
			c.dropLocked(e, errForgotten)
		}
	}
	return next
}

// popLocked takes the most urgent request, the oldest among equals.
func (c *Cache) popLocked() *entry {
	best := 0
	for i, e := range c.queue {
		b := c.queue[best]
		if e.priority > b.priority || e.priority == b.priority && e.order < b.order {
			best = i
		}
	}
	e := c.queue[best]
	c.removeLocked(best)
	return e
}

func (c *Cache) removeLocked(i int) {
	last := len(c.queue) - 1
	c.queue[i] = c.queue[last]
	c.queue[last] = nil
	c.queue = c.queue[:last]
}

// call makes one signing call. before is e.delivered at its start.
func (c *Cache) call(ctx context.Context, cancel context.CancelFunc, e *entry, before int, calls *sync.WaitGroup) {
	defer calls.Done()
	defer cancel()
	start := time.Now()
	svid, err := c.issuer.Issue(ctx, e.id)
	if err == nil && svid.ID != e.id {
		err = errWrongID
	}
	if c.cfg.Issued != nil {
		c.cfg.Issued(e.id, time.Since(start), err)
	}
	c.finish(e, before, svid, err)
}

// finish records the outcome of a call and wakes whoever waits for it. What was
// delivered meanwhile is newer.
func (c *Cache) finish(e *entry, before int, svid *SVID, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls--
	c.signal()
	switch {
	case err == nil:
		c.silent = nil
	case errors.Is(err, ErrUnreachable), errors.Is(err, context.DeadlineExceeded):
		c.silent = ErrUnreachable // err names another identity
	}
	if e.done == nil { // forgotten meanwhile
		return
	}
	now := time.Now()
	if e.delivered != before && e.valid(now) {
		svid, err = e.svid, nil
	}
	if err != nil {
		wait := e.backoff.Next()
		e.err, e.failedAt, e.due = err, now, now.Add(wait)
		c.cfg.Log.Warn("certificate request failed", "identity", e.id.String(), "error", err, "retry", wait)
	} else {
		e.svid, e.err = svid, nil
		e.backoff.Reset()
		e.used.Store(e.priority == RealTime)
		e.due = c.renewAt(svid, now)
		c.cfg.Log.Info("certificate issued", "identity", e.id.String(), "serial", svid.Serial, "expires", svid.NotAfter)
	}
	close(e.done)
	e.done, e.abandon = nil, nil
}

// receive takes a certificate that a Streamer delivers. An identity that nobody
// needed since the one before is dropped.
func (c *Cache) receive(svid *SVID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[svid.ID]
	switch {
	case e == nil || e.svid == svid:
	case e.done == nil && !e.pinned && !e.used.Load():
		c.dropLocked(e, errForgotten)
	default:
		e.svid, e.err = svid, nil
		e.delivered++
		e.used.Store(false)
		e.backoff.Reset()
		e.due = c.renewAt(svid, time.Now())
		c.signal()
		c.cfg.Log.Info("certificate renewed", "identity", e.id.String(), "serial", svid.Serial, "expires", svid.NotAfter)
	}
}

// renewAt returns when to ask for the next certificate: of a Streamer, which
// should have delivered it long before, when this one has ended.
func (c *Cache) renewAt(s *SVID, now time.Time) time.Time {
	if c.stream != nil {
		return s.NotAfter
	}
	return renewAt(s, now, c.cfg.MinBackoff)
}

// renewAt returns half the life of the certificate, ±5 % of the life so that a
// node's certificates do not all come due together. A certificate that is already
// older (a clock that is off) is renewed soon, but not in a tight loop.
func renewAt(s *SVID, now time.Time, soonest time.Duration) time.Time {
	half := run.Jitter(s.NotAfter.Sub(s.NotBefore)/2, 0.1)
	at := s.NotBefore.Add(half)
	if earliest := now.Add(soonest); at.Before(earliest) {
		return earliest
	}
	return at
}

// dropLocked removes an entry and fails whoever waits for it.
func (c *Cache) dropLocked(e *entry, why error) {
	delete(c.entries, e.id)
	if c.stream != nil {
		c.stream.Release(e.id)
	}
	for i, q := range c.queue {
		if q == e {
			c.removeLocked(i)
			break
		}
	}
	if e.abandon != nil {
		e.abandon()
	}
	e.svid = nil
	if e.err == nil {
		e.err = why
	}
	if e.done != nil {
		close(e.done)
		e.done = nil
	}
}

// stop fails every waiting caller and all that come later.
func (c *Cache) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopped = errStopped
	for _, e := range c.queue {
		e.err = errStopped
		close(e.done)
		e.done = nil
	}
	c.queue = nil
}

func (e *entry) valid(now time.Time) bool { return e.svid != nil && now.Before(e.svid.NotAfter) }

func minTime(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// Certificate implements Source.
func (f Fixed) Certificate(_ context.Context, id mesh.Identity) (*SVID, error) {
	svid := f[id]
	switch {
	case svid == nil:
		return nil, noCertificate(id, errors.New("not among the fixed certificates"))
	case time.Now().After(svid.NotAfter):
		return nil, noCertificate(id, errors.New("expired at "+svid.NotAfter.UTC().Format(time.RFC3339)))
	}
	return svid, nil
}
