package golden

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const before = "A case.\n-- in --\nx\n-- want --\nold\n"

func TestCases(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.txtar")
	if err := os.WriteFile(path, []byte(before), 0o644); err != nil {
		t.Fatal(err)
	}
	run := func(got string) {
		t.Run("cases", func(t *testing.T) {
			Cases(t, path, func(t *testing.T, c *Case) {
				if !strings.HasSuffix(t.Name(), "/a") || c.Path != path || len(c.Files()) != 2 || c.Has("other") {
					t.Errorf("%s: %+v", t.Name(), c)
				}
				if in := c.Section(t, "in"); string(in) != "x\n" {
					t.Errorf("section %q", in)
				}
				c.Want(t, "want", got)
			})
		})
	}
	content := func() string {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	run("old\n")
	if got := content(); got != before {
		t.Errorf("without -update the case became\n%s", got)
	}
	defer func(was bool) { *update = was }(*update)
	*update = true
	run("new\n")
	if got := content(); got != strings.Replace(before, "old", "new", 1) {
		t.Errorf("with -update the case became\n%s", got)
	}
	file := filepath.Join(t.TempDir(), "out")
	File(t, file, "text")
	*update = false
	File(t, file, "text")
}
