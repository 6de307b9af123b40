package metrics

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// TestExpiriesAreBounded: of very many certificates those that end first are shown.
func TestExpiriesAreBounded(t *testing.T) {
	t.Parallel()
	reg := NewRegistry("ztunnel", "v1")
	CertificateExpiry(reg, func(yield func(mesh.Identity, time.Time) bool) {
		for n := range 3 * maxExpiries {
			id := mesh.Identity{TrustDomain: "cluster.local", Namespace: "a", ServiceAccount: fmt.Sprint(n)}
			if !yield(id, time.Unix(int64(1e6+n), 0)) {
				return
			}
		}
	})
	text := scrape(t, reg, "culvert_certificate_expiration_timestamp_seconds")
	if n := strings.Count(text, "identity="); n != maxExpiries {
		t.Errorf("%d series", n)
	}
	if !strings.Contains(text, `/sa/0"}`) || strings.Contains(text, fmt.Sprintf(`/sa/%d"}`, maxExpiries)) {
		t.Error("not those that end first")
	}
}
