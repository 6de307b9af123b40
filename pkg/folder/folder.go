// Package folder reads folders of Kubernetes-style YAML as one set of objects
// and follows their changes. It is what stands in for an API server when the
// mesh runs on one machine.
//
//	base     shop/*.yaml           what a person wrote
//	objects  objects/*.yaml        what controllers made: created, or merged over base
//	patches  patches/*/*.yaml      small additions (annotations): merged, never created
//	            │
//	            ▼   JSON merge patch (RFC 7396) per object key, in that order
//	         Snapshot{Objects, Changed, Problems}
//
// A file may hold several documents, and Lists. A file that cannot be read as a
// whole keeps its last good content, and a Problem says file, line, field and
// reason; the other files go on. Names that editors use for temporary files are
// skipped, so writing to a temporary name and renaming it is always atomic.
// Sub-folders are followed. Files are bounded in size, and an anchor may not be
// used to blow a small file up into a large tree.
//
// Snapshots and the objects in them are immutable and may be read by any number
// of goroutines. A Watcher is run by one goroutine.
package folder

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"time"
)

// Limits on what is read.
const (
	MaxFileSize  = 8 << 20 // bytes of one file
	MaxNodes     = 500_000 // YAML nodes of one file, aliases counted as often as used
	MaxDepth     = 100     // nesting of one document
	RescanPeriod = 2 * time.Second
)

// Layers are the folders that make up a set. Within a layer the later folder
// wins; within a folder files are taken in the order of their paths.
type Layers struct {
	Base    []string // an object that two files define is a Problem; the first stays
	Objects []string // creates objects, or merges over those of Base
	Patches []string // merges over objects that exist; waits for those that do not
}

// Snapshot is the merged set at one moment.
type Snapshot struct {
	Objects  map[Key]*Object
	Changed  []Key // added, changed or removed since the previous snapshot, in order
	Problems []Problem
	Previous bool // what an earlier run kept (Config.LastGood); the present state follows at once
}

// Sorted returns the objects in the order of their keys.
func (s *Snapshot) Sorted() []*Object {
	keys := slices.SortedFunc(maps.Keys(s.Objects), Key.Compare)
	out := make([]*Object, len(keys))
	for i, k := range keys {
		out[i] = s.Objects[k]
	}
	return out
}

// Load reads the layers once. Folders that do not exist are empty.
func Load(l Layers) *Snapshot {
	s := newScanner(l)
	s.scan()
	snap, _ := s.merge()
	return snap
}

// Config configures a Watcher.
type Config struct {
	Layers Layers
	// LastGood is a folder for copies of the base layer's files, "" for none. A
	// file that differs from its copy when Run begins is first given as it was, so
	// that whoever keeps the last good version of things still has one after a
	// restart. Copies are made by Keep.
	LastGood string
	Log      *slog.Logger // nil = discard
}

// Watcher follows folders.
type Watcher struct {
	scanner *scanner
	log     *slog.Logger
}

// NewWatcher returns a Watcher; it reads nothing before Run.
func NewWatcher(c Config) *Watcher {
	log := c.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := newScanner(c.Layers)
	s.copies = c.LastGood
	return &Watcher{scanner: s, log: log}
}

// Keep copies those of the files read since the last call that are good, for
// later runs. It must be called from within Run's handle.
func (w *Watcher) Keep(good func(file string) bool) error { return w.scanner.keep(good) }

// Run reads the folders, calls handle with the first snapshot at once and then
// with each snapshot that differs, until ctx ends; it then returns nil. Folders
// that appear later are picked up. handle is called by one goroutine at a time
// and holds up the watch while it runs.
func (w *Watcher) Run(ctx context.Context, handle func(*Snapshot)) error {
	return w.run(ctx, handle)
}
