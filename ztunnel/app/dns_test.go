package app

import (
	"fmt"
	"strings"
	"testing"
)

func TestConfigDNS(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		environ string
		on      bool
		addrs   string
	}{
		{"A=b", true, "[127.0.0.1:15053 [::1]:15053]"},
		{"ISTIO_META_DNS_CAPTURE=true", true, "[127.0.0.1:15053 [::1]:15053]"},
		{"ISTIO_META_DNS_CAPTURE=false", false, "[127.0.0.1:15053 [::1]:15053]"},
		{"ISTIO_META_DNS_CAPTURE=yes", false, "[127.0.0.1:15053 [::1]:15053]"},
		{"PROXY_CONFIG={proxyMetadata: {ISTIO_META_DNS_CAPTURE: 'false'}}", false, "[127.0.0.1:15053 [::1]:15053]"},
		{"ISTIO_META_DNS_PROXY_ADDR=localhost:5300", true, "[127.0.0.1:5300 [::1]:5300]"},
		{"ISTIO_META_DNS_PROXY_ADDR=127.0.0.9:53", true, "[127.0.0.9:53]"},
	} {
		got := parse(t, c.environ)
		if got.DNSCapture != c.on || fmt.Sprint(got.DNSAddrs) != c.addrs {
			t.Errorf("%s: %v %v, want %v %s", c.environ, got.DNSCapture, got.DNSAddrs, c.on, c.addrs)
		}
	}
	if c := parse(t, "PREFERED_SERVICE_NAMESPACE=gold"); c.PreferredNamespace != "gold" {
		t.Errorf("preferred namespace %q", c.PreferredNamespace)
	}
	for _, bad := range []string{"ISTIO_META_DNS_PROXY_ADDR=localhost", "ISTIO_META_DNS_PROXY_ADDR=0.0.0.0:15053", "ISTIO_META_DNS_PROXY_ADDR=localhost:0", "XDS_ON_DEMAND=true"} {
		name, _, _ := strings.Cut(bad, "=")
		if _, err := ParseConfig([]string{"FAKE_CA=true", bad}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: error %v does not name it", bad, err)
		}
	}
	if c := parse(t, "XDS_ON_DEMAND=true", "ISTIO_META_DNS_CAPTURE=false"); !c.OnDemand || c.DNSCapture {
		t.Errorf("on demand %v, DNS %v", c.OnDemand, c.DNSCapture)
	}
}
