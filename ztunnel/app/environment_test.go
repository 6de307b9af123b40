package app

import (
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/pkg/environ"
)

// environments reach, together, everything that is read.
var environments = [][]string{
	nil,
	{"PROXY_MODE=dedicated", "PROXY_WORKLOAD_INFO=ns/name/sa"},
	{"OTEL_EXPORTER_OTLP_ENDPOINT=collector:4317", "OTEL_EXPORTER_OTLP_PROTOCOL=grpc"},
}

// TestEnvironmentTable holds that docs/ztunnel-environment.md lists every variable
// that is read and no other, and that a default in backquotes is the default.
func TestEnvironmentTable(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/ztunnel-environment.md")
	if err != nil {
		t.Fatal(err)
	}
	read := map[string]bool{}
	for _, vars := range environments {
		e := environ.New(vars)
		if _, err := readConfig(e); err != nil {
			t.Fatal(err)
		}
		for _, name := range e.Asked() {
			read[name] = true
		}
	}
	quoted := regexp.MustCompile("`([^`]*)`")
	fallback := parse(t)
	listed := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(cells) != 3 || !strings.HasPrefix(strings.TrimSpace(cells[0]), "`") {
			continue
		}
		for _, m := range quoted.FindAllStringSubmatch(cells[0], -1) {
			name := m[1]
			if listed[name] {
				t.Errorf("%s is listed twice", name)
			}
			listed[name] = true
			if !read[name] && !(strings.HasPrefix(name, "ISTIO_META_") && read["ISTIO_META_*"]) {
				t.Errorf("%s is listed, and nothing reads it", name)
			}
			value := strings.TrimSpace(cells[1])
			if !strings.HasPrefix(value, "`") {
				continue
			}
			c := parse(t, name+"="+strings.Trim(value, "`"))
			c.Metadata = fallback.Metadata
			if !reflect.DeepEqual(fallback, c) {
				t.Errorf("%s is not the default of %s", value, name)
			}
		}
	}
	var missing []string
	for name := range read {
		if !listed[name] {
			missing = append(missing, name)
		}
	}
	if slices.Sort(missing); missing != nil {
		t.Errorf("not in docs/ztunnel-environment.md: %s", strings.Join(missing, " "))
	}
}
