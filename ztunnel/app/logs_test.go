package app

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"google.golang.org/protobuf/proto"

	"github.com/culvert-mesh/culvert/pkg/hbone/hbonetest"
	"github.com/culvert-mesh/culvert/pkg/logging"
	"github.com/culvert-mesh/culvert/pkg/run/runtest"
)

// TestOTLP: a whole ztunnel sends its log to a collector too, from the first word to
// the last, and says who it is.
func TestOTLP(t *testing.T) {
	requests := make(chan *collector.ExportLogsServiceRequest, 100)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		in := new(collector.ExportLogsServiceRequest)
		if err := proto.Unmarshal(body, in); err != nil {
			t.Error(err)
		}
		requests <- in
	}))
	t.Cleanup(s.Close)
	cfg := parse(t, "XDS_ADDRESS=", "FAKE_CA=true", "INPOD_UDS=", "NODE_NAME=n1", "POD_NAMESPACE=istio-system", "POD_NAME=ztunnel-x",
		"OTEL_EXPORTER_OTLP_ENDPOINT="+s.URL, "OTEL_RESOURCE_ATTRIBUTES=team=mesh")
	cfg.AdminPort, cfg.StatsPort, cfg.ReadyPort = freePort(t), freePort(t), freePort(t)
	var log runtest.Buffer
	ended := make(chan error, 1)
	go func() { ended <- logging.During(&log, 0, func(w *logging.Writer) error { return runApp(cfg, w) }) }()
	hbonetest.Until(t, "ztunnel to be ready", func() bool { return get(cfg.ReadyPort, "/healthz/ready") == "ready\n" })
	if resp, err := http.Post(fmt.Sprintf("http://127.0.0.1:%d/quitquitquit", cfg.AdminPort), "", nil); err != nil {
		t.Fatal(err)
	} else {
		resp.Body.Close()
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	http.DefaultClient.CloseIdleConnections()
	close(requests)
	said := map[string]bool{}
	for in := range requests {
		for _, r := range in.ResourceLogs {
			who := map[string]string{}
			for _, a := range r.Resource.Attributes {
				who[a.Key] = a.Value.GetStringValue()
			}
			if who["service.name"] != "ztunnel" || who["k8s.node.name"] != "n1" || who["k8s.pod.name"] != "ztunnel-x" || who["k8s.namespace.name"] != "istio-system" || who["team"] != "mesh" {
				t.Errorf("resource %v", who)
			}
			for _, scope := range r.ScopeLogs {
				for _, record := range scope.LogRecords {
					said[record.Body.GetStringValue()] = true
				}
			}
		}
	}
	if !said["starting"] || !said["stopped"] {
		t.Errorf("said %v", said)
	}
}
