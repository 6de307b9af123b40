package certs

import (
	"context"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

// rescan is how often a watched file is looked at even if the kernel tells of no
// change: its folder may be missing, or of a file system that tells nothing.
const rescan = 30 * time.Second

// WatchFile calls look at once, and again when something in path's folder has
// changed and then been quiet for settle: a file is often replaced in several
// steps, and in Kubernetes by swapping a link beside it. look must compare for
// itself what it reads. WatchFile returns nil when ctx ends.
func WatchFile(ctx context.Context, path string, settle time.Duration, look func()) error {
	var events chan fsnotify.Event
	notify, err := fsnotify.NewWatcher()
	if err == nil {
		defer notify.Close()
		events = notify.Events
	}
	folder := filepath.Dir(path)
	for {
		if notify != nil {
			_ = notify.Add(folder) // again each time: the folder itself may be replaced
		}
		look()
		if !quiet(ctx, events, settle) {
			return nil
		}
	}
}

// quiet waits for an event and then until none has come for settle, or for the
// next rescan. It returns false when ctx has ended.
func quiet(ctx context.Context, events <-chan fsnotify.Event, settle time.Duration) bool {
	timer := time.NewTimer(rescan)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-events:
			timer.Reset(settle)
		case <-timer.C:
			return true
		}
	}
}
