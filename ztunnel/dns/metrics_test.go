package dns

import (
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// TestMetrics: upstream's names and labels to the letter, and series that go some
// time after the last pod that has them.
func TestMetrics(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	m := NewMetrics(reg)
	l := labelsOf(&mesh.Workload{CanonicalName: "cart"})
	if l != (clientLabels{"cart", "unknown"}) || labelsOf(nil) != (clientLabels{"unknown", "unknown"}) {
		t.Errorf("labels %v %v", l, labelsOf(nil))
	}
	one, two := m.join(l), m.join(l)
	s := series{m, "a", "udp", l.service, l.revision}
	s.request()
	s.upstream(time.Millisecond, errNoAnswer)
	names := func() (all []string) {
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			all = append(all, f.GetName())
			var labels []string
			for _, p := range f.GetMetric()[0].GetLabel() {
				labels = append(labels, p.GetName())
			}
			want := []string{"request_protocol", "request_query_type", "source_canonical_revision", "source_canonical_service"}
			if !slices.Equal(labels, want) {
				t.Errorf("%s has labels %q", f.GetName(), labels)
			}
		}
		return all
	}
	all := []string{"istio_dns_requests_total", "istio_dns_upstream_failures_total", "istio_dns_upstream_request_duration_seconds", "istio_dns_upstream_requests_total"}
	if got := names(); !slices.Equal(got, all) {
		t.Errorf("%q", got)
	}
	m.leave(one)
	m.expire(time.Now().Add(2 * seriesIdle))
	if got := names(); len(got) != 4 {
		t.Errorf("gone while a pod has them: %q", got)
	}
	m.leave(two)
	if got := names(); len(got) != 4 {
		t.Errorf("gone at once: %q", got)
	}
	m.expire(time.Now().Add(2 * seriesIdle))
	if got := names(); len(got) != 0 {
		t.Errorf("left behind: %q", got)
	}
}
