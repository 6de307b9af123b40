package proxy

import (
	"errors"
	"os"
	"sync"
	"time"

	"github.com/culvert-mesh/culvert/waypoint/stream"
)

// watch notices a client that leaves while it waits for an answer, so that the
// endpoint does not work for nobody. A proxy sees that only by reading, and most
// answers are there sooner than a second reader could be started: it begins when
// an answer takes long. As in Envoy and net/http, the end of the client's sending
// direction counts as leaving.
//
//	off ──arm──▶ armed ──50 ms──▶ reading ──┐
//	 ▲             │ stop           │ stop  │ the client is gone: the session ends
//	 └─────────────┴────────────────┘       ▼
type watch struct {
	s     *session
	fill  func() (int, error) // reads from the client, once; nil: somebody else notices
	timer *time.Timer
	done  chan struct{} // a reading has ended

	mu    sync.Mutex
	state watchState
}

type watchState uint8

const (
	watchOff watchState = iota
	watchArmed
	watchReading
)

func (w *watch) init(s *session, fill func() (int, error)) {
	w.s, w.fill = s, fill
	w.done = make(chan struct{}, 1)
}

// arm starts the watch. The request's body must have been read to its end.
func (w *watch) arm() {
	if w.fill == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.state != watchOff {
		return
	}
	w.state = watchArmed
	if w.timer == nil {
		w.timer = time.AfterFunc(watchAfter, w.fire)
		return
	}
	w.timer.Reset(watchAfter)
}

// fire runs in the timer's goroutine and reads until something comes.
func (w *watch) fire() {
	w.mu.Lock()
	armed := w.state == watchArmed
	if armed {
		w.state = watchReading
	}
	w.mu.Unlock()
	if !armed {
		return
	}
	_, err := w.fill()
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		w.s.cancel()
	}
	w.done <- struct{}{}
}

// stop ends the watch; afterwards nobody reads from the client.
func (w *watch) stop() {
	w.mu.Lock()
	state := w.state
	if state == watchArmed {
		w.timer.Stop()
		w.state = watchOff
	}
	w.mu.Unlock()
	if state != watchReading {
		return
	}
	_ = w.s.down.SetReadDeadline(stream.Past)
	<-w.done
	_ = w.s.down.SetReadDeadline(time.Time{})
	w.mu.Lock()
	w.state = watchOff
	w.mu.Unlock()
}
