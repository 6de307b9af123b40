package folder

import (
	"context"
	"time"

	"github.com/fsnotify/fsnotify"
)

// settlePeriod is how long a file that is being written in place must be left
// alone before it is read, so that half of it is not taken for the whole.
// Renaming a finished file into place needs no such wait; but a notification
// does not tell a rename from a creation, so only the layers that programs write
// (always by renaming) go without.
const settlePeriod = 10 * time.Millisecond

// settleLimit bounds the wait for files that are written all the time.
const settleLimit = 500 * time.Millisecond

// watch is one Run of a Watcher.
type watch struct {
	*Watcher
	notify  *fsnotify.Watcher // nil when the kernel refuses: rescans only
	watched map[string]bool
	settle  map[string]bool // paths to look at when settled
	waiting time.Time       // since when the oldest of them waits
}

func (w *Watcher) run(ctx context.Context, handle func(*Snapshot)) error {
	r := &watch{Watcher: w, watched: map[string]bool{}, settle: map[string]bool{}}
	notify, err := fsnotify.NewWatcher()
	if err != nil {
		w.log.Warn("no file notifications, folders are rescanned only", "err", err)
	} else {
		r.notify = notify
		defer notify.Close()
	}
	w.scanner.visitDir = r.watchDir
	w.scanner.previous = map[*file]bool{}
	w.scanner.scan()
	snap, _ := w.scanner.merge()
	if len(w.scanner.previous) > 0 {
		snap.Previous = true
		handle(snap)
		w.scanner.present()
		w.scanner.reported = true // there is a present state to tell, even if it equals the former
		snap, _ = w.scanner.merge()
	}
	w.scanner.previous = nil
	handle(snap)
	r.loop(ctx, handle)
	return nil
}

// watchDir asks for notifications of one folder. What changes before that is
// found by the next rescan.
func (r *watch) watchDir(path string) {
	if r.notify == nil || r.watched[path] {
		return
	}
	if err := r.notify.Add(path); err != nil {
		r.log.Debug("folder is rescanned only", "folder", path, "err", err)
		return
	}
	r.watched[path] = true
}

func (r *watch) loop(ctx context.Context, handle func(*Snapshot)) {
	rescan := time.NewTicker(RescanPeriod)
	defer rescan.Stop()
	settled := time.NewTimer(0)
	settled.Stop()
	var events chan fsnotify.Event
	var errs chan error
	if r.notify != nil {
		events, errs = r.notify.Events, r.notify.Errors
	}
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-events:
			if r.event(e) {
				r.postpone(settled)
				continue
			}
		case <-settled.C:
			for p := range r.settle {
				r.scanner.touch(p)
			}
			clear(r.settle)
			r.waiting = time.Time{}
		case err := <-errs:
			r.log.Warn("file notifications lost, rescanning", "err", err)
			r.rescan()
		case <-rescan.C:
			r.rescan()
		}
		if snap, differs := r.scanner.merge(); differs {
			handle(snap)
		}
	}
}

// postpone waits for another settlePeriod, but not for ever.
func (r *watch) postpone(settled *time.Timer) {
	if r.waiting.IsZero() {
		r.waiting = time.Now()
	}
	if time.Since(r.waiting) < settleLimit {
		settled.Reset(settlePeriod)
	}
}

// rescan looks at everything except what is being written right now.
func (r *watch) rescan() {
	if len(r.settle) == 0 {
		r.scanner.scan()
	}
}

// event takes one notification and reports whether it must settle first.
func (r *watch) event(e fsnotify.Event) (wait bool) {
	if e.Op == fsnotify.Chmod {
		return false
	}
	if e.Has(fsnotify.Remove) || e.Has(fsnotify.Rename) {
		delete(r.watched, e.Name)
	}
	root, ok := r.scanner.rootOf(e.Name)
	if !ok {
		return false
	}
	if root.layer == base || e.Has(fsnotify.Write) {
		r.settle[e.Name] = true
		return true
	}
	r.scanner.touch(e.Name)
	return false
}
