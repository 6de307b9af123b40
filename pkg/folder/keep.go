package folder

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// copyOf is where the copy of a file is kept.
func (s *scanner) copyOf(f *file) string {
	sum := sha256.Sum256([]byte(f.path))
	return filepath.Join(s.copies, hex.EncodeToString(sum[:12])+".yaml")
}

// kept reports whether copies of f are made.
func (s *scanner) kept(f *file) bool { return s.copies != "" && f.root.layer == base }

// recall gives f the content of its copy, if that differs from the present one.
// Only the first scan does so.
func (s *scanner) recall(f *file, content []byte) bool {
	if s.previous == nil || !s.kept(f) {
		return false
	}
	old, err := readBounded(s.copyOf(f))
	if err != nil || bytes.Equal(old, content) {
		return false
	}
	objects, problems := Parse(f.path, old)
	if len(problems) > 0 {
		return false
	}
	s.previous[f] = true
	s.replace(f, objects)
	return true
}

// present reads the files that stand as an earlier run left them.
func (s *scanner) present() {
	files := s.previous
	s.previous = nil
	for f := range files {
		s.load(f)
	}
}

// remember notes a content that may become the copy of f.
func (s *scanner) remember(f *file, content []byte) {
	if !s.kept(f) {
		return
	}
	if s.unkept == nil {
		s.unkept = map[*file][]byte{}
	}
	s.unkept[f] = content
}

// forget removes what is kept of a file that is gone.
func (s *scanner) forget(f *file) {
	delete(s.unkept, f)
	if s.kept(f) {
		_ = os.Remove(s.copyOf(f)) // a copy that stays is of a file that nobody asks for
	}
}

// keep makes copies of good contents.
func (s *scanner) keep(good func(file string) bool) error {
	var errs []error
	for f, content := range s.unkept {
		if len(f.problems) > 0 || !good(f.path) {
			continue
		}
		delete(s.unkept, f)
		if old, err := readBounded(s.copyOf(f)); err == nil && bytes.Equal(old, content) {
			continue
		}
		errs = append(errs, s.write(f, content))
	}
	return errors.Join(errs...)
}

func (s *scanner) write(f *file, content []byte) error {
	path := s.copyOf(f)
	err := os.MkdirAll(s.copies, 0o700)
	if err == nil {
		err = os.WriteFile(path+".tmp", content, 0o600)
	}
	if err == nil {
		err = os.Rename(path+".tmp", path)
	}
	if err != nil {
		return fmt.Errorf("keep a copy of %s: %w", f.path, err)
	}
	return nil
}
