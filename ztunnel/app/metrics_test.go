package app

import (
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/culvert-mesh/culvert/pkg/logging"
)

// documented is a row of the table in docs/metrics.md.
type documented struct{ kind, labels string }

// TestMetricsTable holds that docs/metrics.md and the registry of a ztunnel with
// everything turned on list the same metrics, with the same labels.
func TestMetricsTable(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	table := map[string]documented{}
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(cells) != 4 || !strings.HasPrefix(strings.TrimSpace(cells[0]), "`") {
			continue
		}
		name := strings.Trim(strings.TrimSpace(cells[0]), "`")
		if _, twice := table[name]; twice {
			t.Errorf("%s is listed twice", name)
		}
		table[name] = documented{strings.TrimSpace(cells[1]), strings.TrimSpace(cells[2])}
		if strings.TrimSpace(cells[3]) == "" {
			t.Errorf("%s has no meaning", name)
		}
	}
	registered := described(t, everything(t))
	for _, name := range slices.Sorted(maps.Keys(registered)) {
		row, ok := table[name]
		switch {
		case !ok:
			t.Errorf("%s{%s} is not in docs/metrics.md", name, registered[name])
		case registered[name] != "" && row.labels != "" && row.labels != registered[name]:
			t.Errorf("docs/metrics.md: %s has labels %s, want %s", name, row.labels, registered[name])
		}
		delete(table, name)
	}
	for _, name := range slices.Sorted(maps.Keys(table)) {
		t.Errorf("docs/metrics.md lists %s, which no ztunnel has", name)
	}
}

// everything is the registry of a ztunnel with all that has metrics.
func everything(t *testing.T) *prometheus.Registry {
	t.Helper()
	crl := t.TempDir() + "/crl.pem"
	if err := os.WriteFile(crl, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := parse(t, "XDS_ADDRESS=http://127.0.0.1:1", "FAKE_CA=true", "INPOD_UDS="+t.TempDir()+"/zds.sock", "CRL_PATH="+crl, "NODE_NAME=n1",
		"ISTIO_META_DNS_CAPTURE=true", "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:1")
	a, err := New(cfg, logging.NewWriter(os.Stderr, 0))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.close)
	return a.registry
}

var descPattern = regexp.MustCompile(`^Desc\{fqName: "([^"]+)", .*variableLabels: \{([^}]*)\}`)

// described lists the metrics of a registry with their labels.
func described(t *testing.T, reg *prometheus.Registry) map[string]string {
	t.Helper()
	ch := make(chan *prometheus.Desc)
	go func() { reg.Describe(ch); close(ch) }()
	out := map[string]string{}
	for d := range ch {
		m := descPattern.FindStringSubmatch(d.String())
		if m == nil {
			t.Errorf("description %s", d)
			continue
		}
		if !strings.HasPrefix(m[1], "go_") && !strings.HasPrefix(m[1], "process_") {
			out[m[1]] = strings.ReplaceAll(m[2], ",", ", ")
		}
	}
	return out
}

// TestGatheredKinds holds that what a ztunnel exposes at once has the kind that the
// table says.
func TestGatheredKinds(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	families, err := everything(t).Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		name := f.GetName()
		if strings.HasPrefix(name, "go_") || strings.HasPrefix(name, "process_") {
			continue
		}
		want := fmt.Sprintf("| `%s` | %s |", name, strings.ToLower(f.GetType().String()))
		if !strings.Contains(string(text), want) {
			t.Errorf("docs/metrics.md has no row beginning with %s", want)
		}
	}
}
