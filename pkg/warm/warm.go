// Package warm runs short work on goroutines whose stacks have grown already.
//
//	goroutine of an idle connection, 2 KiB of stack
//	   │ readable
//	   ├── Do(work) ──▶ a warm goroutine, 8 KiB or more, works
//	   │ ◀── done ───────┘ and waits for the next, of whichever connection
//	   ▼ waits
//
// A goroutine's stack grows with what it calls and does not shrink below 4 KiB
// again, so one that only waits should leave the work to others: thousands of them
// then cost half, and a new one does not copy its stack twice before it has done
// anything.
//
// Do is safe for concurrent use. Warm goroutines end when they have not been
// needed for a second or two.
package warm

import (
	"sync"
	"time"
)

const (
	// spare is how many goroutines wait for work at most.
	spare = 64
	// patience is how long one that is not needed waits at least.
	patience = time.Second
)

// pool is the goroutines that wait, the one that worked last on top.
type pool struct {
	mu     sync.Mutex
	idle   []*worker
	unused int  // so many at the bottom have not worked since the last sweep
	timed  bool // a sweep is to come
}

var all pool

// worker is one warm goroutine.
type worker struct {
	work chan func()
	done chan struct{}
}

// Do runs f on a warm goroutine and returns when f has. f must not wait for
// another Do of the same caller's. It may end its goroutine, and a panic in it is
// one of the program's.
func Do(f func()) {
	w := all.take()
	w.work <- f
	<-w.done
	all.put(w)
}

func (p *pool) take() *worker {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.idle)
	if n == 0 {
		w := &worker{work: make(chan func(), 1), done: make(chan struct{}, 1)}
		go w.run()
		return w
	}
	w := p.idle[n-1]
	p.idle[n-1] = nil
	p.idle = p.idle[:n-1]
	p.unused = min(p.unused, n-1)
	return w
}

func (p *pool) put(w *worker) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.idle) >= spare {
		close(w.work)
		return
	}
	p.idle = append(p.idle, w)
	if !p.timed {
		p.timed = true
		time.AfterFunc(patience, p.sweep)
	}
}

// sweep ends the goroutines that nobody needed since the last sweep.
func (p *pool) sweep() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, w := range p.idle[:p.unused] {
		close(w.work)
		p.idle[i] = nil
	}
	p.idle = append(p.idle[:0], p.idle[p.unused:]...)
	p.unused = len(p.idle)
	p.timed = len(p.idle) > 0
	if p.timed {
		time.AfterFunc(patience, p.sweep)
	}
}

func (w *worker) run() {
	for f := range w.work {
		if !w.one(f) {
			return
		}
	}
}

// one runs f; it reports false, in vain, when f ends the goroutine.
func (w *worker) one(f func()) (again bool) {
	defer func() {
		if !again { // f has called runtime.Goexit, or panics
			go w.run()
		}
		w.done <- struct{}{}
	}()
	f()
	return true
}
