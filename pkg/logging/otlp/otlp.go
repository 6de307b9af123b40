// Package otlp sends log lines to an OpenTelemetry collector, beside the log that
// a program writes, as records of the OTLP logs signal.
//
//	logging, accesslog ──Entry──▶ bounded queue ──Run──▶ batches ──OTLP──▶ collector
//	   (where it happens)              │ full: dropped, counted    gRPC or HTTP
//
// What is logged is decided where it always is: a record is sent for each line that
// is written. Its body is the line's message, its instrumentation scope the line's
// scope, its attributes the line's fields under the same names.
//
// Whoever logs pays for copying the fields and never waits. Everything is safe for
// concurrent use.
package otlp

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/log"
	sdk "go.opentelemetry.io/otel/sdk/log"

	"github.com/culvert-mesh/culvert/pkg/logging"
)

const (
	maxQueue  = 2048        // records that wait; with the largest lines, about 4 MB
	maxBatch  = 512         // records in one request
	maxWait   = time.Second // a record waits no longer for others to go with it
	flushTime = time.Second // what is left at the end may take so long
)

// Logs is a queue of records and what sends them.
type Logs struct {
	cfg      Config
	exporter sdk.Exporter
	provider *sdk.LoggerProvider
	batch    *collect

	mu      sync.Mutex
	queue   []*entry
	closing bool
	wake    chan struct{} // the queue holds a batch, or is closing

	pool           sync.Pool // *entry
	sent           atomic.Uint64
	dropped        atomic.Uint64
	failedRequests atomic.Uint64
}

// New returns a queue that sends nothing before Run. The configuration must be
// Enabled.
func New(cfg Config) (*Logs, error) {
	cfg.Timeout = cmp.Or(cfg.Timeout, 10*time.Second)
	exporter, err := newExporter(cfg)
	if err != nil {
		return nil, fmt.Errorf("OTLP logs to %s: %w", cfg.Endpoint, err)
	}
	batch := &collect{}
	return &Logs{
		cfg:      cfg,
		exporter: exporter,
		batch:    batch,
		provider: sdk.NewLoggerProvider(sdk.WithResource(cfg.resource()), sdk.WithProcessor(batch)),
		wake:     make(chan struct{}, 1),
	}, nil
}

// Counts are records that were sent, that were dropped because the collector was
// too slow or away, and requests that failed.
type Counts struct{ Sent, Dropped, FailedRequests uint64 }

// Counts returns what has become of the records so far.
func (l *Logs) Counts() Counts {
	return Counts{l.sent.Load(), l.dropped.Load(), l.failedRequests.Load()}
}

// entry is one record in the making, and then in the queue.
type entry struct {
	logs    *Logs
	at      time.Time
	level   slog.Level
	scope   string
	message string
	fields  []attribute.KeyValue
}

// Entry implements logging.Sink.
func (l *Logs) Entry(at time.Time, level slog.Level, scope, message string) logging.Entry {
	l.mu.Lock()
	full := l.closing || len(l.queue) >= maxQueue
	l.mu.Unlock()
	if full {
		l.dropped.Add(1)
		return nil
	}
	e, _ := l.pool.Get().(*entry)
	if e == nil {
		e = &entry{logs: l}
	}
	e.at, e.level, e.scope, e.message = at, level, scope, message
	return e
}

// Text implements logging.Entry.
func (e *entry) Text(key, value string) { e.fields = append(e.fields, attribute.String(key, value)) }

// Int implements logging.Entry.
func (e *entry) Int(key string, n int64) { e.fields = append(e.fields, attribute.Int64(key, n)) }

// Bool implements logging.Entry.
func (e *entry) Bool(key string, b bool) { e.fields = append(e.fields, attribute.Bool(key, b)) }

// End implements logging.Entry: it queues the record.
func (e *entry) End() {
	l := e.logs
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closing || len(l.queue) >= maxQueue {
		l.dropped.Add(1)
		return
	}
	l.queue = append(l.queue, e)
	if len(l.queue) == maxBatch || len(l.queue) == 1 {
		l.signal()
	}
}

func (l *Logs) signal() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Run sends records until ctx ends, then what is left for at most a second. Run it
// with a context that outlives whoever logs.
func (l *Logs) Run(ctx context.Context) error {
	work := context.WithoutCancel(ctx)
	for ctx.Err() == nil {
		l.await(ctx)
		request, cancel := context.WithCancel(work)
		stop := context.AfterFunc(ctx, func() { time.AfterFunc(flushTime, cancel) })
		l.send(request)
		stop()
		cancel()
	}
	l.mu.Lock()
	l.closing = true
	l.mu.Unlock()
	last, cancel := context.WithTimeout(work, flushTime)
	defer cancel()
	for last.Err() == nil && l.send(last) {
	}
	for left := l.take(); len(left) > 0; left = l.take() {
		l.dropped.Add(uint64(len(left)))
	}
	_ = l.exporter.Shutdown(last) // it has nothing left to send
	return nil
}

// await returns when a batch is full, or some time after there is anything.
func (l *Logs) await(ctx context.Context) {
	for l.length() == 0 {
		select {
		case <-ctx.Done():
			return
		case <-l.wake:
		}
	}
	soon := time.NewTimer(maxWait)
	defer soon.Stop()
	for l.length() < maxBatch {
		select {
		case <-ctx.Done():
			return
		case <-soon.C:
			return
		case <-l.wake:
		}
	}
}

func (l *Logs) length() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.queue)
}

// take removes at most a batch from the queue.
func (l *Logs) take() []*entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := min(len(l.queue), maxBatch)
	taken := append([]*entry(nil), l.queue[:n]...)
	rest := copy(l.queue, l.queue[n:])
	clear(l.queue[rest:])
	l.queue = l.queue[:rest]
	return taken
}

// send sends one batch and reports whether there was one. What the collector does
// not take is dropped: its own retries are over then.
func (l *Logs) send(ctx context.Context) bool {
	taken := l.take()
	if len(taken) == 0 {
		return false
	}
	for _, e := range taken {
		l.emit(ctx, e)
	}
	records := l.batch.take()
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Timeout)
	defer cancel()
	if err := l.exporter.Export(ctx, records); err != nil {
		l.failedRequests.Add(1)
		l.dropped.Add(uint64(len(records)))
		return true
	}
	l.sent.Add(uint64(len(records)))
	return true
}

// emit makes a record of an entry, which it gives back.
func (l *Logs) emit(ctx context.Context, e *entry) {
	var r log.Record
	r.SetTimestamp(e.at)
	r.SetObservedTimestamp(e.at)
	r.SetSeverity(severity(e.level))
	r.SetSeverityText(logging.LevelName(e.level))
	r.SetBody(attribute.StringValue(e.message))
	r.AddAttributes(e.fields...)
	l.provider.Logger(e.scope).Emit(ctx, r)
	clear(e.fields)
	e.fields = e.fields[:0]
	l.pool.Put(e)
}

// severity maps a level to OpenTelemetry's numbers.
func severity(level slog.Level) log.Severity {
	switch {
	case level >= slog.LevelError:
		return log.SeverityError
	case level >= slog.LevelWarn:
		return log.SeverityWarn
	case level >= slog.LevelInfo:
		return log.SeverityInfo
	case level >= slog.LevelDebug:
		return log.SeverityDebug
	}
	return log.SeverityTrace
}

// collect is the processor that puts records with their resource and scope into
// the next request. Only Run's goroutine uses it.
type collect struct{ records []sdk.Record }

// Enabled implements sdk.Processor.
func (c *collect) Enabled(context.Context, sdk.EnabledParameters) bool { return true }

// OnEmit implements sdk.Processor.
func (c *collect) OnEmit(_ context.Context, r *sdk.Record) error {
	c.records = append(c.records, r.Clone())
	return nil
}

// Shutdown implements sdk.Processor.
func (c *collect) Shutdown(context.Context) error { return nil }

// ForceFlush implements sdk.Processor.
func (c *collect) ForceFlush(context.Context) error { return nil }

func (c *collect) take() []sdk.Record {
	r := c.records
	c.records = nil
	return r
}
