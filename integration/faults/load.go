// Package faults says what a mesh loses while something in it breaks. A load goes
// through a mesh, something is done to the mesh, and every connection is
// accounted for.
//
//	          200 new connections/s ──┐
//	Load  ──                          ├─▶ mesh ─▶ echo servers
//	          16 streams × 20 req/s ──┘    ▲
//	                                       │
//	Fault ── restart, kill, freeze, relabel┘
//
//	Load.Start ─▶ Running.Stop ─▶ Report: what failed, when, where, why
//
// A new connection is one message to an echo server and back, on a connection of
// its own: behind a proxy a connect that succeeds says nothing. A stream is a
// connection that stays open, with one message under way at a time.
//
// A Load is a value and may be started several times; a Running belongs to one
// goroutine; a Report is a value.
package faults

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Dialer connects to an echo server through the mesh.
type Dialer func(ctx context.Context) (net.Conn, error)

// Load is what goes through the mesh. A zero number takes its default.
type Load struct {
	Connect    Dialer        // of new connections; nil: none
	Stream     Dialer        // of streams; nil: none
	Rate       int           // new connections per second; default 200
	Streams    int           // default 16
	StreamRate int           // messages per second on each; default 20
	Timeout    time.Duration // a new connection without an answer has failed after this; default 5 s
}

func (l Load) withDefaults() Load {
	def := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	def(&l.Rate, 200)
	def(&l.Streams, 16)
	def(&l.StreamRate, 20)
	if l.Timeout == 0 {
		l.Timeout = 5 * time.Second
	}
	if l.Connect == nil {
		l.Rate = 0
	}
	if l.Stream == nil {
		l.Streams = 0
	}
	return l
}

// Running is a load that is under way.
type Running struct {
	load   Load
	began  time.Time
	ctx    context.Context // of starting something new
	cancel context.CancelFunc
	all    sync.WaitGroup

	mu      sync.Mutex
	report  Report
	took    []time.Duration // of new connections that were answered
	waiting map[*flow]time.Time
}

// flow is one stream.
type flow struct {
	number int
	conn   net.Conn
}

// Start begins the load and returns when every stream is open and has had an
// answer. It goes on until Stop, also when ctx ends.
func (l Load) Start(ctx context.Context) (*Running, error) {
	r := &Running{load: l.withDefaults(), began: time.Now(), waiting: map[*flow]time.Time{}}
	r.ctx, r.cancel = context.WithCancel(context.WithoutCancel(ctx))
	flows, err := r.openAll(ctx)
	if err != nil {
		r.cancel()
		return nil, err
	}
	r.began = time.Now()
	for _, f := range flows {
		r.all.Go(func() { r.keepTalking(f) })
	}
	if r.load.Rate > 0 {
		r.all.Go(r.pace)
	}
	return r, nil
}

// openAll opens the streams; it fails when one cannot be opened.
func (r *Running) openAll(ctx context.Context) ([]*flow, error) {
	flows := make([]*flow, r.load.Streams)
	for i := range flows {
		c, err := r.openStream(ctx)
		if err != nil {
			for _, f := range flows[:i] {
				f.conn.Close()
			}
			return nil, fmt.Errorf("open stream %d of the load: %w", i, err)
		}
		flows[i] = &flow{number: i, conn: c}
	}
	return flows, nil
}

func (r *Running) openStream(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, r.load.Timeout)
	defer cancel()
	c, err := r.load.Stream(ctx)
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(r.load.Timeout))
	if _, err := exchange(c, 0); err != nil {
		c.Close()
		return nil, err
	}
	c.SetDeadline(time.Time{})
	return c, nil
}

// Stop ends the load and returns what became of it. New connections that are
// under way get their time; a stream gets as much for its last answer.
func (r *Running) Stop() *Report {
	r.cancel()
	late := time.AfterFunc(r.load.Timeout, r.giveUp)
	r.all.Wait()
	late.Stop()
	r.mu.Lock()
	defer r.mu.Unlock()
	rep := r.report
	rep.Lasted = time.Since(r.began)
	rep.Streams = r.load.Streams
	rep.measure(r.took)
	return &rep
}

// giveUp ends streams that wait for an answer that does not come.
func (r *Running) giveUp() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for f := range r.waiting {
		f.conn.SetDeadline(time.Unix(1, 0))
	}
}

// pace starts a new connection each time one is due. One that is late is started
// at once: the rate is kept over time.
func (r *Running) pace() {
	gap := time.Second / time.Duration(r.load.Rate)
	next := time.Now()
	for {
		next = next.Add(gap)
		if !r.sleepUntil(next) {
			return
		}
		r.all.Go(r.connectOnce)
	}
}

// sleepUntil reports whether the load still goes on at t.
func (r *Running) sleepUntil(t time.Time) bool {
	timer := time.NewTimer(time.Until(t))
	defer timer.Stop()
	select {
	case <-timer.C:
		return r.ctx.Err() == nil
	case <-r.ctx.Done():
		return false
	}
}

// connectOnce is one new connection, from its start to its account.
func (r *Running) connectOnce() {
	start := time.Now()
	step, err := r.tryOnce(start.Add(r.load.Timeout))
	r.mu.Lock()
	defer r.mu.Unlock()
	r.report.Connections++
	if err != nil {
		r.report.Failed++
		r.failedLocked("connection", step, start, err)
		return
	}
	r.took = append(r.took, time.Since(start))
}

func (r *Running) tryOnce(deadline time.Time) (step string, err error) {
	ctx, cancel := context.WithDeadline(context.WithoutCancel(r.ctx), deadline)
	defer cancel()
	c, err := r.load.Connect(ctx)
	if err != nil {
		return "connect", err
	}
	defer c.Close()
	c.SetDeadline(deadline)
	return exchange(c, 1)
}

// keepTalking sends one message after another on a stream, and opens the stream
// again when it has broken, so that what breaks next is counted too.
func (r *Running) keepTalking(f *flow) {
	gap := time.Second / time.Duration(r.load.StreamRate)
	next := time.Now().Add(gap * time.Duration(f.number) / time.Duration(r.load.Streams))
	for n := uint32(1); r.sleepUntil(next); n++ {
		next = next.Add(gap)
		if late := time.Now(); next.Before(late) {
			next = late // what an answer held up is not made up for
		}
		if f.conn == nil && !r.reopen(f) {
			continue
		}
		r.say(f, n)
	}
	if f.conn != nil {
		f.conn.Close()
	}
}

// say sends one message and waits for its answer, for as long as it takes.
func (r *Running) say(f *flow, n uint32) {
	start := time.Now()
	r.mu.Lock()
	r.waiting[f] = start
	r.mu.Unlock()
	step, err := exchange(f.conn, n)
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.waiting, f)
	r.report.Messages++
	if waited := time.Since(start); waited > r.report.LongestWait {
		r.report.LongestWait = waited
	}
	if err == nil {
		return
	}
	r.report.Broken++
	r.failedLocked("stream", step, start, err)
	f.conn.Close()
	f.conn = nil
}

func (r *Running) reopen(f *flow) bool {
	c, err := r.openStream(r.ctx)
	if err == nil {
		f.conn = c
	}
	return err == nil
}

// failedLocked notes one failure. r.mu is held.
func (r *Running) failedLocked(what, step string, start time.Time, err error) {
	if len(r.report.Failures) < maxFailures {
		r.report.Failures = append(r.report.Failures, Failure{
			At: start.Sub(r.began), After: time.Since(start), What: what, Step: step, Reason: classify(err), Detail: err.Error(),
		})
	}
}

// maxFailures bounds the list of a report; its counts go on.
const maxFailures = 10_000

var errWrongEcho = errors.New("the answer is not what was sent")

// messageLen is the length of a message.
const messageLen = 32

// exchange sends message number n and reads it back. It names the step that failed.
func exchange(c net.Conn, n uint32) (step string, err error) {
	var out, in [messageLen]byte
	copy(out[:], fmt.Sprintf("message %d", n))
	if _, err := c.Write(out[:]); err != nil {
		return "send", err
	}
	if _, err := io.ReadFull(c, in[:]); err != nil {
		return "answer", err
	}
	if in != out {
		return "answer", errWrongEcho
	}
	return "", nil
}
