package app

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/pkg/hbone/hbonetest"
	"github.com/culvert-mesh/culvert/pkg/logging"
	"github.com/culvert-mesh/culvert/pkg/run/runtest"
	"github.com/culvert-mesh/culvert/ztunnel/proxy"
	"github.com/culvert-mesh/culvert/ztunnel/why"
)

// TestAdmin asks every page of the admin port of a whole ztunnel, also as istioctl
// reads it, and ends it by the last one.
func TestAdmin(t *testing.T) {
	known := `workloads:
- {uid: a, name: a, namespace: shop, serviceAccount: a, trustDomain: cluster.local, workloadIps: [10.0.0.1], protocol: HBONE, node: n1, services: {}}
- {uid: b, name: b, namespace: shop, serviceAccount: b, trustDomain: cluster.local, workloadIps: [10.0.0.2], protocol: HBONE, node: n1, services: {"shop/b.shop": {80: 8080}}}
services:
- {name: b, namespace: shop, hostname: b.shop, vips: ["/10.96.0.7"], ports: {80: 8080}}
policies: []
`
	cfg := parse(t, "XDS_ADDRESS=", "FAKE_CA=true", "INPOD_UDS=", "NODE_NAME=n1", "LOCAL_XDS="+known)
	cfg.AdminPort, cfg.StatsPort, cfg.ReadyPort = freePort(t), freePort(t), freePort(t)
	var log runtest.Buffer
	ended := make(chan error, 1)
	go func() { ended <- logging.During(&log, 0, func(w *logging.Writer) error { return runApp(cfg, w) }) }()
	base := fmt.Sprintf("http://127.0.0.1:%d", cfg.AdminPort)
	hbonetest.Until(t, "the admin port", func() bool { return get(cfg.AdminPort, "/") != "" })
	t.Cleanup(http.DefaultClient.CloseIdleConnections)

	index := get(cfg.AdminPort, "/")
	for _, path := range []string{"/config_dump", "/logging", "/debug/pprof/", "/debug/failures", "/debug/tunnels", "/debug/why", "/quitquitquit"} {
		if !strings.Contains(index, `href="`+path+`"`) {
			t.Errorf("the index does not list %s", path)
		}
	}
	checkDump(t, get(cfg.AdminPort, "/config_dump"))
	for _, path := range []string{"/debug/failures", "/debug/failures?pod=shop/a&since=" + time.Now().UTC().Format(time.RFC3339Nano), "/debug/tunnels"} {
		var list []proxy.Failure
		if text := get(cfg.AdminPort, path); json.Unmarshal([]byte(text), &list) != nil || list == nil {
			t.Errorf("%s: %q is no list", path, text)
		}
	}
	if status, text := post(t, base+"/logging?level=warn,access=debug", ""); status != 200 || text != "current log level is warn,access=debug\n" {
		t.Errorf("log levels: %d %q", status, text)
	}
	if status, text := post(t, base+"/logging?reset", ""); status != 200 || text != "current log level is info\n" {
		t.Errorf("log levels: %d %q", status, text)
	}
	checkWhy(t, base)
	if status, _ := post(t, base+"/quitquitquit", ""); status != 200 {
		t.Errorf("quit: %d", status)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func runApp(cfg Config, w *logging.Writer) error {
	a, err := New(cfg, w)
	if err != nil {
		return err
	}
	return a.Run(context.Background())
}

func post(t *testing.T, url, body string) (int, string) {
	t.Helper()
	resp, err := http.Post(url, "application/json", bytes.NewReader([]byte(body)))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// checkDump holds the keys and kinds that istioctl's ztunnel-config parses.
func checkDump(t *testing.T, text string) {
	t.Helper()
	var dump struct {
		Workloads     []map[string]any
		Services      []map[string]any
		Policies      []map[string]any
		Certificates  []map[string]any
		WorkloadState map[string]any
		StagedService map[string]any `json:"stagedServices"`
		StaticConfig  map[string]any
		Config        map[string]any
		Version       map[string]string
	}
	if err := json.Unmarshal([]byte(text), &dump); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	if len(dump.Workloads) != 2 || len(dump.Services) != 1 || dump.Policies == nil || dump.Certificates == nil ||
		dump.WorkloadState == nil || dump.StagedService == nil || dump.StaticConfig == nil || dump.Config["localNode"] != "n1" {
		t.Errorf("dump %s", text)
	}
	for _, key := range []string{"version", "gitRevision", "rustVersion", "buildProfile", "buildStatus", "istioVersion", "cryptoProvider"} {
		if dump.Version[key] == "" {
			t.Errorf("version has no %s", key)
		}
	}
}

func checkWhy(t *testing.T, base string) {
	t.Helper()
	question := `{"pod": {"namespace": "shop", "name": "a", "serviceAccount": "a"}, "dst": "10.96.0.7:80"}`
	status, text := post(t, base+"/debug/why", question)
	var a why.Answer
	if err := json.Unmarshal([]byte(text), &a); err != nil || status != 200 || !a.Allowed || len(a.Ways) != 1 || a.Ways[0].Next.String() != "10.0.0.2:8080" {
		t.Errorf("%d %s: %v", status, text, err) // no agent has handed the pod over: plain TCP
	}
	arriving := `{"pod": {"namespace": "shop", "name": "b", "serviceAccount": "b"}, "arriving": {"source": "10.0.0.1", "dst": "10.0.0.2:15008", "identity": "spiffe://cluster.local/ns/shop/sa/a", "authority": "10.0.0.2:8080"}}`
	if _, text := post(t, base+"/debug/why", arriving); !strings.Contains(text, `"reason": "connection refused"`) {
		t.Errorf("a pod that nobody serves: %s", text)
	}
	for _, bad := range []string{"", "{}", `{"pod": 1}`, `{"arriving": {}}`, strings.Repeat("x", maxQuestion+1)} {
		if status, _ := post(t, base+"/debug/why", bad); status != http.StatusBadRequest {
			t.Errorf("%.20q: %d", bad, status)
		}
	}
	if resp, err := http.Get(base + "/debug/why"); err != nil || resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("GET: %v", err)
	} else {
		resp.Body.Close()
	}
	if resp, err := http.Get(base + "/debug/failures?since=yesterday"); err != nil || resp.StatusCode != http.StatusBadRequest {
		t.Errorf("since: %v", err)
	} else {
		resp.Body.Close()
	}
}
