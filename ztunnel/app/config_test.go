package app

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/culvert-mesh/culvert/pkg/channel"
	"github.com/culvert-mesh/culvert/pkg/mesh"
)

func parse(t *testing.T, environ ...string) Config {
	t.Helper()
	c, err := ParseConfig(environ)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestConfigDefaults(t *testing.T) {
	t.Parallel()
	c := parse(t)
	if c.ZDSSocket != "/var/run/ztunnel/ztunnel.sock" || parse(t, "INPOD_UDS=").ZDSSocket != "" {
		t.Errorf("agent's socket %q", c.ZDSSocket)
	}
	if c.XDS.Address != "https://localhost:15012" || c.CA.Address != c.XDS.Address {
		t.Errorf("addresses %q %q", c.XDS.Address, c.CA.Address)
	}
	if c.AdminPort != 15000 || c.StatsPort != 15020 || c.ReadyPort != 15021 {
		t.Errorf("ports %d %d %d", c.AdminPort, c.StatsPort, c.ReadyPort)
	}
	if c.Mark != 0x539 || !c.ReusePort || !c.IPv6 || c.OrigSrc != OrigSrcAuto || c.DrainTime != 5*time.Second {
		t.Errorf("pod settings %+v", c)
	}
	if c.Cluster != "Kubernetes" || c.RootNamespace != "istio-system" || c.ClusterDomain != "cluster.local" || c.InstanceIP.String() != "1.1.1.1" {
		t.Errorf("identity %+v", c)
	}
	if c.Token != (channel.Token{}) || c.XDS.Roots != channel.DefaultRoots {
		t.Errorf("token %+v, roots %+v", c.Token, c.XDS.Roots)
	}
}

func TestConfigInCluster(t *testing.T) {
	t.Parallel()
	c := parse(t, "KUBERNETES_SERVICE_HOST=10.96.0.1", "CA_ADDRESS=ca:15012")
	if c.XDS.Address != "https://istiod.istio-system.svc:15012" || c.CA.Address != "https://ca:15012" {
		t.Errorf("addresses %q %q", c.XDS.Address, c.CA.Address)
	}
}

func TestConfigStandalone(t *testing.T) {
	t.Parallel()
	c := parse(t, "XDS_ADDRESS=", "CA_ADDRESS=", "FAKE_CA=true", "LOCAL_XDS_PATH=/x.yaml", "AUTH_TOKEN=secret")
	if c.XDS.Address != "" || !c.FakeCA || c.LocalXDSPath != "/x.yaml" || c.Token.Literal != "secret" {
		t.Errorf("%+v", c)
	}
	if _, err := ParseConfig([]string{"CA_ADDRESS="}); err == nil || !strings.Contains(err.Error(), "CA_ADDRESS") {
		t.Errorf("without a CA: %v", err)
	}
}

func TestConfigProxyConfig(t *testing.T) {
	t.Parallel()
	c := parse(t,
		"PROXY_CONFIG={discoveryAddress: 'cp.example:15012', proxyAdminPort: 1, statsPort: 2, concurrency: 3, proxyMetadata: {ISTIO_META_A: x, B: y}}",
		"ISTIO_META_B=z", "ISTIO_META_CLUSTER_ID=c2", "CLUSTER_ID=c1",
		"XDS_HEADER_x-one=1", "CA_HEADER_two=2")
	if c.XDS.Address != "https://cp.example:15012" || c.AdminPort != 1 || c.StatsPort != 2 || c.Cluster != "c2" {
		t.Errorf("%+v", c)
	}
	if diff := cmp.Diff(map[string]string{"A": "x", "B": "z", "CLUSTER_ID": "c2"}, c.Metadata); diff != "" {
		t.Error(diff)
	}
	if c.XDS.Headers["x-one"] != "1" || c.CA.Headers["two"] != "2" {
		t.Errorf("headers %v %v", c.XDS.Headers, c.CA.Headers)
	}
}

func TestConfigDrainTime(t *testing.T) {
	t.Parallel()
	for environ, want := range map[string]time.Duration{
		"TERMINATION_GRACE_PERIOD_SECONDS=30": 25 * time.Second,
		"TERMINATION_GRACE_PERIOD_SECONDS=10": 9 * time.Second,
		"TERMINATION_GRACE_PERIOD_SECONDS=1":  time.Second,
		"CONNECTION_TERMINATION_DEADLINE=1m":  time.Minute,
	} {
		if c := parse(t, environ); c.DrainTime != want {
			t.Errorf("%s: %s, want %s", environ, c.DrainTime, want)
		}
	}
}

func TestConfigMistakes(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{
		"FAKE_CA=1", "IPV6_ENABLED=yes", "SECRET_TTL=24", "POOL_MAX_STREAMS_PER_CONNECTION=0",
		"HTTP2_FRAME_SIZE=1", "PACKET_MARK=x", "INSTANCE_IP=host", "LOG_FORMAT=xml", "XDS_ADDRESS=ftp://x",
		"PROXY_MODE=other", "XDS_ON_DEMAND=maybe", "UNSTABLE_ENABLE_SOCKS5=maybe",
		"ZTUNNEL_WORKER_THREADS=many", "ZTUNNEL_WORKER_THREADS=0", "ZTUNNEL_WORKER_THREADS=0%", "ZTUNNEL_WORKER_THREADS=101%", "ZTUNNEL_CPU_LIMIT=0.5",
		"AUTHZ_POLICY_INFO_LOGGING=on", "ENABLE_RESPONSE_BAGGAGE=off", "PROXY_CONFIG={concurrency: -1}",
		"COMPLIANCE_POLICY=none", "TLS12_ENABLED=maybe", "ENABLE_PROXY=false", "PROXY_CONFIG=[", "ENABLE_ORIG_SRC=maybe",
	} {
		name, _, _ := strings.Cut(bad, "=")
		if _, err := ParseConfig([]string{bad}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: error %v does not name it", bad, err)
		}
	}
	_, err := ParseConfig([]string{"FAKE_CA=1", "LOG_FORMAT=xml"})
	if err == nil || strings.Count(err.Error(), "\n") != 1 {
		t.Errorf("two mistakes told as %v", err)
	}
}

func TestConfigThreads(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		environ []string
		want    int
	}{
		{nil, 0},
		{[]string{"PROXY_CONFIG={concurrency: 3}"}, 3},
		{[]string{"PROXY_CONFIG={concurrency: 3}", "ZTUNNEL_WORKER_THREADS=5"}, 5},
		{[]string{"ZTUNNEL_CPU_LIMIT=10", "ZTUNNEL_WORKER_THREADS=25%"}, 3},
		{[]string{"ZTUNNEL_RESOURCE_CPU_LIMIT=64", "ZTUNNEL_CPU_LIMIT=8", "ZTUNNEL_WORKER_THREADS=100%"}, 8},
		{[]string{"ZTUNNEL_RESOURCE_CPU_LIMIT=64", "ZTUNNEL_WORKER_THREADS=12.5%"}, 8},
		{[]string{"ZTUNNEL_CPU_LIMIT=1", "ZTUNNEL_WORKER_THREADS=1%"}, 1},
		{[]string{"ZTUNNEL_CPU_LIMIT=4"}, 0}, // by itself it limits nothing: the runtime knows the control group's
	} {
		if got := parse(t, c.environ...).Threads; got != c.want {
			t.Errorf("%v: %d threads, want %d", c.environ, got, c.want)
		}
	}
}

func TestDefaultThreads(t *testing.T) {
	t.Parallel()
	for cpus, want := range map[int]int{1: 1, 2: 1, 3: 1, 4: 2, 8: 2, 12: 3, 64: 16} {
		if got := defaultThreads(cpus); got != want {
			t.Errorf("%d CPUs: %d threads, want %d", cpus, got, want)
		}
	}
}

func TestConfigOwn(t *testing.T) {
	t.Parallel()
	all := []string{"POD_NAME=ztunnel-x", "POD_NAMESPACE=istio-system", "SERVICE_ACCOUNT=ztunnel"}
	info, id, ok := parse(t, append(all, "TRUST_DOMAIN=example.org")...).Own()
	if !ok || info.Name != "ztunnel-x" || id.String() != "spiffe://example.org/ns/istio-system/sa/ztunnel" {
		t.Errorf("%v %v %v", info, id, ok)
	}
	for i := range all {
		if _, _, ok := parse(t, append(append([]string{}, all[:i]...), all[i+1:]...)...).Own(); ok {
			t.Errorf("without %s it knows itself", all[i])
		}
	}
}

func TestConfigDedicated(t *testing.T) {
	t.Parallel()
	c := parse(t, "PROXY_MODE=dedicated", "PROXY_WORKLOAD_INFO=shop/cart-0/cart", "UNSTABLE_ENABLE_SOCKS5=true")
	want := mesh.PodInfo{Namespace: "shop", Name: "cart-0", ServiceAccount: "cart"}
	if c.Dedicated != want || c.ZDSSocket != "" || c.Mark != 0 || !c.SOCKS {
		t.Errorf("%+v", c)
	}
	if c := parse(t, "PROXY_MODE=dedicated", "PROXY_WORKLOAD_INFO=a/b/c", "PACKET_MARK=7"); c.Mark != 7 {
		t.Errorf("mark %d", c.Mark)
	}
	for _, bad := range []string{"", "a/b", "a//c", "a/b/c/d"} {
		_, err := ParseConfig([]string{"PROXY_MODE=dedicated", "PROXY_WORKLOAD_INFO=" + bad})
		if err == nil || !strings.Contains(err.Error(), "PROXY_WORKLOAD_INFO") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
