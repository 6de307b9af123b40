package logging

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"
)

// DefaultLimit is how many bytes of lines a Writer holds.
const DefaultLimit = 1 << 20

// gatherTime is the least time between two writes, unless gatherBytes or half of
// the limit have been queued meanwhile: under load lines share a write instead of each waking who reads them.
const (
	gatherTime  = 5 * time.Millisecond
	gatherBytes = 16 << 10
)

// flushTime is how long a Writer tries to empty its buffer at the end.
const flushTime = time.Second

// Writer is a bounded buffer in front of a slow writer. Write never blocks and
// never fails: a line that does not fit is dropped and counted. Each call of Write
// must be one whole line.
type Writer struct {
	out   io.Writer
	limit int
	wake  chan struct{} // there are lines, or closing
	haste chan struct{} // there are many, or closing

	mu      sync.Mutex
	lines   []byte
	dropped uint64
	closing bool
}

// NewWriter returns a Writer that holds at most limit bytes, 0 for DefaultLimit,
// and as many again while they are written out. Nothing is written before Run.
func NewWriter(out io.Writer, limit int) *Writer {
	if limit == 0 {
		limit = DefaultLimit
	}
	return &Writer{out: out, limit: limit, wake: make(chan struct{}, 1), haste: make(chan struct{}, 1)}
}

// Write queues one line.
func (w *Writer) Write(line []byte) (int, error) {
	w.mu.Lock()
	if w.closing || len(w.lines)+len(line) > w.limit {
		w.dropped++
		w.mu.Unlock()
		return len(line), nil
	}
	before := len(w.lines)
	w.lines = append(w.lines, line...)
	after := len(w.lines)
	w.mu.Unlock()
	if before == 0 {
		signal(w.wake)
	}
	if many := min(gatherBytes, w.limit/2); before < many && after >= many {
		signal(w.haste)
	}
	return len(line), nil
}

// Dropped returns how many lines did not fit so far.
func (w *Writer) Dropped() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.dropped
}

// Run writes lines out until ctx ends, then what is left for at most a second. A
// write that hangs longer is abandoned with its goroutine, so Run returns. Run it
// with a context that outlives whoever logs; see During.
func (w *Writer) Run(ctx context.Context) error {
	done := make(chan struct{})
	go w.pump(done)
	<-ctx.Done()
	w.close()
	deadline := time.NewTimer(flushTime)
	defer deadline.Stop()
	select {
	case <-done:
		return nil
	case <-deadline.C:
		return fmt.Errorf("write log: output blocked, lines lost")
	}
}

// During calls f with a running Writer in front of out and writes out what is left
// when f has returned: the frame of a program's main.
func During(out io.Writer, limit int, f func(w *Writer) error) error {
	w := NewWriter(out, limit)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = w.Run(ctx) // output that blocks at the end has nobody to be told
	}()
	defer func() {
		cancel()
		<-done
	}()
	return f(w)
}

func signal(to chan<- struct{}) {
	select {
	case to <- struct{}{}:
	default:
	}
}

func (w *Writer) close() {
	w.mu.Lock()
	w.closing = true
	w.mu.Unlock()
	signal(w.wake)
	signal(w.haste)
}

// pump writes batches until the writer is closing and empty: the first line at
// once, what follows closely together. Two buffers take
// turns, so that in the long run nothing is allocated. Output errors are not
// reported: there is nowhere left to report them.
func (w *Writer) pump(done chan<- struct{}) {
	defer close(done)
	var batch []byte
	gather := time.NewTimer(gatherTime)
	defer gather.Stop()
	for {
		w.mu.Lock()
		batch, w.lines = w.lines, batch[:0]
		closing := w.closing
		w.mu.Unlock()
		if len(batch) > 0 {
			_, _ = w.out.Write(batch)
			gather.Reset(gatherTime)
			select {
			case <-gather.C:
			case <-w.haste:
			}
			continue
		}
		if closing {
			return
		}
		<-w.wake
	}
}
