// Package file is the source of objects that live in folders of YAML.
//
//	folder.Snapshot ── strict decode, per object ─► source.Update
//
// Decoding is strict: an unknown field, a wrong type or a value that is none of
// those allowed is reported with file, line, field path and reason, and the last
// good version of that object stays. Kinds that the control plane does not know
// are reported as not supported and otherwise ignored.
package file

import (
	"context"
	"log/slog"
	"slices"

	"github.com/culvert-mesh/culvert/controlplane/source"
	"github.com/culvert-mesh/culvert/pkg/folder"
)

// Source reads folders. It implements source.Source.
type Source struct {
	watcher *folder.Watcher
	tracker *tracker
}

// New returns a Source that reads nothing before Run. lastGood is a folder for
// copies of good files, so that the last good version of an object outlives this
// process; "" = none.
func New(l folder.Layers, lastGood string, log *slog.Logger) *Source {
	return &Source{watcher: folder.NewWatcher(folder.Config{Layers: l, LastGood: lastGood, Log: log}), tracker: newTracker()}
}

// Keep implements source.Keeper.
func (s *Source) Keep(good func(file string) bool) error { return s.watcher.Keep(good) }

// Run implements source.Source.
func (s *Source) Run(ctx context.Context, handle func(source.Update)) error {
	return s.watcher.Run(ctx, func(snap *folder.Snapshot) { handle(s.tracker.update(snap)) })
}

// Decode returns the objects of a snapshot and what is wrong with it.
func Decode(snap *folder.Snapshot) source.Update { return newTracker().update(snap) }

// tracker remembers which objects were handed over, and what is wrong with each.
type tracker struct {
	decoders map[groupKind]decoder
	given    map[folder.Key]source.Key
	problems map[folder.Key][]source.Problem
}

func newTracker() *tracker {
	return &tracker{decoders: decoders(), given: map[folder.Key]source.Key{}, problems: map[folder.Key][]source.Problem{}}
}

func (t *tracker) update(snap *folder.Snapshot) source.Update {
	u := source.Update{Previous: snap.Previous}
	for _, k := range snap.Changed {
		o, ok := snap.Objects[k]
		if !ok {
			delete(t.problems, k)
			if sk, ok := t.given[k]; ok {
				delete(t.given, k)
				u.Removed = append(u.Removed, sk)
			}
			continue
		}
		if obj := t.decode(k, o); obj != nil {
			t.given[k] = obj.Key()
			u.Set = append(u.Set, obj)
		}
	}
	u.Problems = t.all(snap.Problems)
	return u
}

// decode returns the object, or nil when it is bad or of no use.
func (t *tracker) decode(k folder.Key, o *folder.Object) source.Object {
	delete(t.problems, k)
	d, ok := t.decoders[groupKind{k.Group, k.Kind}]
	if !ok {
		t.problems[k] = []source.Problem{unsupported(o)}
		return nil
	}
	obj, faults := d(o)
	for _, f := range faults {
		t.problems[k] = append(t.problems[k], problem(o, f))
	}
	if len(faults) > 0 {
		return nil
	}
	return obj
}

func (t *tracker) all(files []folder.Problem) []source.Problem {
	var out []source.Problem
	for _, p := range files {
		out = append(out, source.Problem{Object: p.Object, File: p.File, Line: p.Line, Field: p.Field, Reason: p.Reason, Detail: p.Detail})
	}
	keys := make([]folder.Key, 0, len(t.problems))
	for k := range t.problems {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, folder.Key.Compare)
	for _, k := range keys {
		out = append(out, t.problems[k]...)
	}
	return out
}
