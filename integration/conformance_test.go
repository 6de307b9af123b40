package integration

import (
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestConformanceTable holds that every row of docs/ztunnel-conformance.md names a
// test, and that each test, case and script that it names exists.
func TestConformanceTable(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../docs/ztunnel-conformance.md")
	if err != nil {
		t.Fatal(err)
	}
	name := regexp.MustCompile("`([^`]+)`")
	rows, section := 0, ""
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "#") {
			section = strings.TrimSpace(strings.TrimLeft(line, "#"))
		}
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if !strings.HasPrefix(line, "|") || strings.HasPrefix(line, "| row |") || strings.HasPrefix(line, "|---") {
			continue
		}
		rows++
		if len(cells) != 3 {
			t.Errorf("%s: %d cells in %q", section, len(cells), line)
			continue
		}
		names := name.FindAllStringSubmatch(cells[2], -1)
		if len(names) == 0 {
			t.Errorf("%s: row %q names no test", section, strings.TrimSpace(cells[0]))
		}
		for _, n := range names {
			if why := missing(t, n[1]); why != "" {
				t.Errorf("%s: row %q names %s: %s", section, strings.TrimSpace(cells[0]), n[1], why)
			}
		}
	}
	if rows < 100 {
		t.Errorf("only %d rows are read", rows)
	}
}

// missing says why a test, "directory.TestName/subtest", or a file does not exist.
func missing(t *testing.T, name string) string {
	t.Helper()
	if ext := path.Ext(name); ext == ".txtar" || ext == ".nft" || ext == ".hex" {
		if _, err := os.Stat(filepath.Join("..", name)); err != nil {
			return "no such file"
		}
		return ""
	}
	dir, test, ok := strings.Cut(name, ".")
	if !ok {
		return "want directory.TestName"
	}
	test, sub, _ := strings.Cut(test, "/")
	files, err := filepath.Glob(filepath.Join("..", dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	var source strings.Builder
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		source.Write(text)
	}
	switch {
	case !strings.Contains(source.String(), "\nfunc "+test+"("):
		return "no such test"
	case sub != "" && !strings.Contains(source.String(), `"`+sub+`"`):
		return "no such subtest"
	}
	return ""
}
