package folder

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/culvert-mesh/culvert/pkg/reason"
)

type layer uint8

const (
	base layer = iota
	objects
	patches
)

// root is one folder of a layer.
type root struct {
	path  string
	layer layer
	order int // among all roots: layers first, then as given
}

// stamp tells one content of a file from another without reading it.
type stamp struct {
	size     int64
	modified time.Time
	inode    uint64
}

// file is what is known of one file.
type file struct {
	path     string
	root     root
	stamp    stamp
	objects  []*Object // the last good content
	problems []Problem // of the present content
}

func (f *file) compare(o *file) int {
	return cmp.Or(cmp.Compare(f.root.order, o.root.order), cmp.Compare(f.path, o.path))
}

// scanner keeps the files of the layers and merges them. It is used by one
// goroutine.
type scanner struct {
	roots    []root
	files    map[string]*file
	dirs     map[string]bool // folders that were entered
	lost     map[string]bool // folders that were given and are not there
	bad      map[*file]bool  // files with problems
	byKey    map[Key][]*file // files that mention the key, in order
	merged   map[Key]*Object
	dups     map[Key][]Problem
	dirty    map[Key]struct{} // keys to merge again
	reported bool             // problems changed since the last merge
	given    bool             // there was a first snapshot
	copies   string           // folder of last good copies; "" = none
	unkept   map[*file][]byte // contents that are not copied yet
	previous map[*file]bool   // files that stand as an earlier run left them; nil after the first scan
	visitDir func(string)     // told of every folder that a scan enters; may be nil
}

func newScanner(l Layers) *scanner {
	s := &scanner{files: map[string]*file{}, dirs: map[string]bool{}, lost: map[string]bool{}, bad: map[*file]bool{}, byKey: map[Key][]*file{}, merged: map[Key]*Object{},
		dups: map[Key][]Problem{}, dirty: map[Key]struct{}{}}
	for i, paths := range [][]string{l.Base, l.Objects, l.Patches} {
		for _, p := range paths {
			s.roots = append(s.roots, root{filepath.Clean(p), layer(i), len(s.roots)})
		}
	}
	return s
}

// scan looks at every file of every folder.
func (s *scanner) scan() {
	seen := make(map[string]bool, len(s.files))
	for _, r := range s.roots {
		s.walk(r, r.path, seen)
	}
	for path, f := range s.files {
		if !seen[path] {
			s.drop(f)
		}
	}
}

// walk looks at the files below path. The files of a folder that cannot be read
// stay as they are known, and so do those of a user's folder that is gone as a
// whole: it was moved or is not mounted, nobody asked for everything in it to end.
func (s *scanner) walk(r root, path string, seen map[string]bool) {
	_ = filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			if s.miss(r, p, err) || !errors.Is(err, fs.ErrNotExist) {
				s.keepBelow(p, seen)
			}
			return nil
		}
		if d.IsDir() {
			if s.lost[p] {
				delete(s.lost, p)
				s.reported = true
			}
			if p != r.path && strings.HasPrefix(d.Name(), ".") {
				return fs.SkipDir
			}
			s.dirs[p] = true
			if s.visitDir != nil {
				s.visitDir(p)
			}
			return nil
		}
		if wanted(d.Name()) {
			seen[p] = true
			s.look(r, p)
		}
		return nil
	})
}

// miss notes that a user's folder is not there, and reports whether that is so.
func (s *scanner) miss(r root, path string, err error) bool {
	if path != r.path || r.layer != base || !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	s.reported = s.reported || !s.lost[path]
	s.lost[path] = true
	return true
}

// holds reports whether files below path are known.
func (s *scanner) holds(path string) bool {
	for p := range s.files {
		if strings.HasPrefix(p, path+string(filepath.Separator)) {
			return true
		}
	}
	return false
}

func (s *scanner) keepBelow(path string, seen map[string]bool) {
	for p := range s.files {
		if strings.HasPrefix(p, path+string(filepath.Separator)) {
			seen[p] = true
		}
	}
}

// touch looks again at one path that changed: a file, a folder, or nothing.
func (s *scanner) touch(path string) {
	r, ok := s.rootOf(path)
	if !ok {
		return
	}
	info, err := os.Stat(path)
	switch {
	case err == nil && info.IsDir():
		if path == r.path || !strings.HasPrefix(filepath.Base(path), ".") {
			s.walk(r, path, map[string]bool{})
		}
	case err == nil && wanted(filepath.Base(path)):
		s.look(r, path)
	case s.miss(r, path, err):
	case errors.Is(err, fs.ErrNotExist):
		s.dropBelow(path)
	}
}

func (s *scanner) dropBelow(path string) {
	if f, ok := s.files[path]; ok {
		s.drop(f)
		return
	}
	if !s.dirs[path] {
		return
	}
	delete(s.dirs, path)
	for p, f := range s.files {
		if strings.HasPrefix(p, path+string(filepath.Separator)) {
			s.drop(f)
		}
	}
}

func (s *scanner) rootOf(path string) (root, bool) {
	for _, r := range s.roots {
		if path == r.path || strings.HasPrefix(path, r.path+string(filepath.Separator)) {
			return r, true
		}
	}
	return root{}, false
}

// wanted reports whether a file of that name is read. The names that editors
// and atomic writers give to temporary files are not.
func wanted(name string) bool {
	if strings.HasPrefix(name, ".") || strings.HasPrefix(name, "#") || strings.HasSuffix(name, "~") {
		return false
	}
	switch filepath.Ext(name) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}

// look reads a file if it is new or changed.
func (s *scanner) look(r root, path string) {
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() {
		return
	}
	st := stamp{size: info.Size(), modified: info.ModTime()}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		st.inode = sys.Ino
	}
	f := s.files[path]
	if f == nil {
		f = &file{path: path, root: r}
		s.files[path] = f
	} else if f.stamp == st {
		return
	}
	f.stamp = st
	s.load(f)
}

// load takes the present content of f, or keeps the last good one.
func (s *scanner) load(f *file) {
	content, err := readBounded(f.path)
	if err != nil {
		s.judge(f, []Problem{{File: f.path, Reason: reason.InvalidValue, Detail: err.Error()}})
		return
	}
	if s.recall(f, content) {
		return
	}
	objects, problems := Parse(f.path, content)
	s.remember(f, content)
	s.judge(f, problems)
	if len(problems) == 0 {
		s.replace(f, objects)
	}
}

// judge notes what is wrong with f at present.
func (s *scanner) judge(f *file, problems []Problem) {
	s.reported = s.reported || len(problems)+len(f.problems) > 0
	f.problems = problems
	if len(problems) > 0 {
		s.bad[f] = true
	} else {
		delete(s.bad, f)
	}
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, MaxFileSize+1))
}

// replace makes objects the content of f.
func (s *scanner) replace(f *file, objects []*Object) {
	for _, o := range f.objects {
		k := o.Key()
		s.dirty[k] = struct{}{}
		s.byKey[k] = slices.DeleteFunc(s.byKey[k], func(g *file) bool { return g == f })
		if len(s.byKey[k]) == 0 {
			delete(s.byKey, k)
		}
	}
	f.objects = objects
	for _, o := range objects {
		k := o.Key()
		s.dirty[k] = struct{}{}
		if !slices.Contains(s.byKey[k], f) {
			s.byKey[k] = append(s.byKey[k], f)
			slices.SortFunc(s.byKey[k], (*file).compare)
		}
	}
}

func (s *scanner) drop(f *file) {
	s.judge(f, nil)
	s.replace(f, nil)
	s.forget(f)
	delete(s.files, f.path)
}

// merge brings the merged set up to date and reports whether anything a reader
// could see differs from the last time; without a difference there is no
// snapshot.
func (s *scanner) merge() (*Snapshot, bool) {
	var changed []Key
	for k := range s.dirty {
		if s.mergeKey(k) {
			changed = append(changed, k)
		}
	}
	clear(s.dirty)
	if len(changed) == 0 && !s.reported && s.given {
		return nil, false
	}
	s.reported, s.given = false, true
	slices.SortFunc(changed, Key.Compare)
	return &Snapshot{Objects: maps.Clone(s.merged), Changed: changed, Problems: s.problems()}, true
}

// mergeKey merges one object again and reports whether it differs.
func (s *scanner) mergeKey(k Key) bool {
	before := s.merged[k]
	dups := s.dups[k]
	after := s.build(k)
	s.reported = s.reported || len(dups) != len(s.dups[k])
	if after == nil {
		delete(s.merged, k)
		return before != nil
	}
	s.merged[k] = after
	return before == nil || before.File != after.File || before.APIVersion != after.APIVersion || !equal(before.Node, after.Node)
}

// build merges what the files say about k, in order.
func (s *scanner) build(k Key) *Object {
	delete(s.dups, k)
	var out *Object
	m := &merger{}
	for _, f := range s.byKey[k] {
		for _, o := range f.objects {
			if o.Key() != k {
				continue
			}
			switch {
			case out == nil && f.root.layer == patches:
			case out == nil:
				c := *o
				out = &c
			case f.root.layer == base:
				s.dups[k] = append(s.dups[k], duplicate(o, out))
			default:
				m.apply(out, o)
			}
		}
	}
	return out
}

func duplicate(o, first *Object) Problem {
	return Problem{File: o.File, Line: o.Line, Object: o.Key().String(), Reason: reason.DuplicateObject,
		Detail: fmt.Sprintf("the first one, at %s:%d, stays in force", first.File, first.Line)}
}

func (m *merger) apply(out, patch *Object) {
	if m.files == nil {
		m.files = map[*yaml.Node]string{}
		out.files = m.files
	}
	out.Node = m.merge(out.Node, patch.Node, patch.File)
}

func (s *scanner) problems() []Problem {
	var out []Problem
	for path := range s.lost {
		if s.holds(path) {
			out = append(out, Problem{File: path, Reason: reason.TargetNotFound, Detail: "there is no such folder; what it held stays in force"})
		}
	}
	for f := range s.bad {
		out = append(out, f.problems...)
	}
	for _, p := range s.dups {
		out = append(out, p...)
	}
	slices.SortFunc(out, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Field, b.Field))
	})
	return out
}
