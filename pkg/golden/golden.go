// Package golden runs tests whose cases people read and whose results are files.
//
//	testdata/waypoint.txtar          golden.Cases(t, "testdata/*.txtar", func(t, c) {
//	  what the case is about              in := c.Section(t, "flow")
//	  -- flow --                          c.Want(t, "want", answer(in))
//	  client -> 10.1.0.1:80           })
//	  -- want --
//	  tunnel to 10.0.0.9:15008        go test ./ztunnel/route -update   writes the results
//
// It is for tests only: importing it adds the flag -update to a test binary. A Case
// belongs to its test.
package golden

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
)

var update = flag.Bool("update", false, "rewrite the wanted results in testdata")

// Case is one archive.
type Case struct {
	Path    string
	archive *txtar.Archive
	rewrite bool
}

// Cases runs test for every file that pattern matches, in parallel, under the
// file's name. No file is a failure.
func Cases(t *testing.T, pattern string, test func(t *testing.T, c *Case)) {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil || len(paths) == 0 {
		t.Fatalf("no cases in %s: %v", pattern, err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), filepath.Ext(path)), func(t *testing.T) {
			t.Parallel()
			archive, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			c := &Case{Path: path, archive: archive}
			test(t, c)
			if c.rewrite {
				write(t, path, txtar.Format(archive))
			}
		})
	}
}

// Files returns the sections in order; they must not be modified.
func (c *Case) Files() []txtar.File { return c.archive.Files }

// Section returns what is under a name, which must be there.
func (c *Case) Section(t *testing.T, name string) []byte {
	t.Helper()
	f := c.find(name)
	if f == nil {
		t.Fatalf("%s: no section %s", c.Path, name)
	}
	return f.Data
}

// Has reports whether there is a section of that name.
func (c *Case) Has(name string) bool { return c.find(name) != nil }

func (c *Case) find(name string) *txtar.File {
	for i := range c.archive.Files {
		if c.archive.Files[i].Name == name {
			return &c.archive.Files[i]
		}
	}
	return nil
}

// Want compares a result with the section of that name, or with -update becomes it.
func (c *Case) Want(t *testing.T, name, got string) {
	t.Helper()
	want := string(c.Section(t, name))
	switch {
	case want == got:
	case *update:
		c.find(name).Data, c.rewrite = []byte(got), true
	default:
		t.Errorf("%s %s: %s\n-want +got (-update rewrites it)\n%s", c.Path, name, c.archive.Comment, cmp.Diff(want, got))
	}
}

// File compares a result with a whole file, or with -update becomes it.
func File(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		write(t, path, []byte(got))
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s: -want +got (-update rewrites it)\n%s", path, diff)
	}
}

func write(t *testing.T, path string, text []byte) {
	t.Helper()
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
}
