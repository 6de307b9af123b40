package otlp

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	logs "go.opentelemetry.io/proto/otlp/logs/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/culvert-mesh/culvert/pkg/accesslog"
	"github.com/culvert-mesh/culvert/pkg/environ"
	"github.com/culvert-mesh/culvert/pkg/logging"
	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// receiver is a collector that keeps what it gets. While hold is locked it answers
// nothing.
type receiver struct {
	collector.UnimplementedLogsServiceServer
	hold sync.RWMutex

	mu      sync.Mutex
	token   string
	got     []*logs.ResourceLogs
	arrived chan struct{}
}

func newReceiver() *receiver { return &receiver{arrived: make(chan struct{}, 10_000)} }

func (r *receiver) Export(ctx context.Context, req *collector.ExportLogsServiceRequest) (*collector.ExportLogsServiceResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	r.keep(strings.Join(md.Get("authorization"), ""), req)
	return &collector.ExportLogsServiceResponse{}, nil
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, _ := io.ReadAll(req.Body)
	var in collector.ExportLogsServiceRequest
	if err := proto.Unmarshal(body, &in); err != nil || req.URL.Path != "/v1/logs" {
		http.Error(w, "no", http.StatusBadRequest)
		return
	}
	r.keep(req.Header.Get("Authorization"), &in)
	w.Header().Set("Content-Type", "application/x-protobuf")
}

func (r *receiver) keep(token string, req *collector.ExportLogsServiceRequest) {
	r.hold.RLock()
	defer r.hold.RUnlock()
	r.mu.Lock()
	r.token = token
	r.got = append(r.got, req.ResourceLogs...)
	r.mu.Unlock()
	r.arrived <- struct{}{}
}

// record is one record as the receiver has it.
type record struct {
	scope, body, severity string
	resource, attrs       map[string]string
}

func (r *receiver) records() (all []record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, rl := range r.got {
		for _, sl := range rl.ScopeLogs {
			for _, l := range sl.LogRecords {
				all = append(all, record{sl.Scope.Name, l.Body.GetStringValue(), l.SeverityText, texts(rl.Resource.Attributes), texts(l.Attributes)})
			}
		}
	}
	return all
}

func texts(list []*common.KeyValue) map[string]string {
	out := map[string]string{}
	for _, kv := range list {
		switch v := kv.Value.Value.(type) {
		case *common.AnyValue_StringValue:
			out[kv.Key] = v.StringValue
		default:
			out[kv.Key] = strings.TrimSpace(kv.Value.String())
		}
	}
	return out
}

// await returns when the receiver has n records.
func (r *receiver) await(t *testing.T, n int) []record {
	t.Helper()
	for {
		if all := r.records(); len(all) >= n {
			return all
		}
		select {
		case <-r.arrived:
		case <-t.Context().Done():
			t.Fatalf("%d records of %d", len(r.records()), n)
		}
	}
}

// listen starts a receiver for one protocol and returns the variables that lead to it.
func listen(t *testing.T, r *receiver, protocol string) []string {
	t.Helper()
	if protocol == "http/protobuf" {
		s := httptest.NewServer(r)
		t.Cleanup(s.Close)
		return []string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + s.URL}
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	collector.RegisterLogsServiceServer(s, r)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(ln) }()
	t.Cleanup(func() { s.Stop(); <-done })
	return []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://" + ln.Addr().String(), "OTEL_EXPORTER_OTLP_PROTOCOL=grpc"}
}

// start runs a queue to the receiver; stop ends it.
func start(t *testing.T, vars []string) (l *Logs, stop func()) {
	t.Helper()
	e := environ.New(append(vars, "OTEL_EXPORTER_OTLP_HEADERS=authorization=Bearer%20x", "OTEL_RESOURCE_ATTRIBUTES=deployment.environment=test"))
	cfg := ReadConfig(e, map[string]string{"service.name": "ztunnel", "k8s.node.name": "n1", "k8s.pod.name": ""})
	if err := e.Err(); err != nil {
		t.Fatal(err)
	}
	l, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return l, stop
}

func connection() *accesslog.Connection {
	return &accesslog.Connection{
		Source:    accesslog.Party{Addr: netip.MustParseAddrPort("10.0.0.1:4000"), Workload: "front-1", Namespace: "shop", Identity: mesh.Identity{TrustDomain: "td", Namespace: "shop", ServiceAccount: "front"}},
		Direction: accesslog.Outbound, BytesSent: 12, Duration: 5 * time.Millisecond, Err: errors.New("connection refused"),
	}
}

func TestRecordsArrive(t *testing.T) {
	t.Parallel()
	for _, protocol := range []string{"grpc", "http/protobuf"} {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			r := newReceiver()
			l, stop := start(t, listen(t, r, protocol))
			levels, err := logging.NewLevels("info,access=debug")
			if err != nil {
				t.Fatal(err)
			}
			log := slog.New(logging.NewHandlerTo(io.Discard, logging.Plain, levels, l))
			logging.Scope(log, "xds").Warn("stream ended", "error", errors.New("gone"), "attempt", 3, "retry", true, "wait", time.Second)
			log.Debug("hidden by the level")
			accesslog.NewTo(io.Discard, logging.JSON, levels, l).Complete(connection())
			all := r.await(t, 2)
			if len(all) != 2 {
				t.Fatalf("%+v", all)
			}
			byScope := map[string]record{all[0].scope: all[0], all[1].scope: all[1]}
			x, a := byScope["xds"], byScope["access"]
			if x.body != "stream ended" || x.severity != "warn" || x.attrs["error"] != "gone" || x.attrs["attempt"] != "int_value:3" || x.attrs["retry"] != "bool_value:true" || x.attrs["wait"] != "1s" {
				t.Errorf("%+v", x)
			}
			for k, want := range map[string]string{
				"src.addr": "10.0.0.1:4000", "src.workload": "front-1", "src.identity": "spiffe://td/ns/shop/sa/front",
				"direction": "outbound", "bytes_sent": "int_value:12", "duration": "5ms", "error": "connection refused",
			} {
				if a.attrs[k] != want {
					t.Errorf("%s is %q, want %q", k, a.attrs[k], want)
				}
			}
			if a.body != "connection complete" || a.severity != "error" {
				t.Errorf("%+v", a)
			}
			for k, want := range map[string]string{"service.name": "ztunnel", "k8s.node.name": "n1", "deployment.environment": "test", "k8s.pod.name": ""} {
				if a.resource[k] != want {
					t.Errorf("resource %s is %q, want %q", k, a.resource[k], want)
				}
			}
			if r.token != "Bearer x" {
				t.Errorf("header %q", r.token)
			}
			log.Info("the last word")
			stop()
			if all := r.records(); len(all) != 3 || all[2].body != "the last word" {
				t.Errorf("what was logged just before the end: %+v", all)
			}
			if got := l.Counts(); got != (Counts{Sent: 3}) {
				t.Errorf("counts %+v", got)
			}
			log.Info("after the end")
			if got := l.Counts(); got.Dropped != 1 {
				t.Errorf("a record after the end: %+v", got)
			}
		})
	}
}

// TestStuckCollector: lines go on, what does not fit is dropped and counted, and
// nothing more is lost once the collector is back.
func TestStuckCollector(t *testing.T) {
	t.Parallel()
	r := newReceiver()
	l, stop := start(t, listen(t, r, "http/protobuf"))
	levels, err := logging.NewLevels("info")
	if err != nil {
		t.Fatal(err)
	}
	access := accesslog.NewTo(io.Discard, logging.Plain, levels, l)
	r.hold.Lock()
	const lines = 10_000
	for range lines {
		access.Complete(connection())
	}
	dropped := l.Counts().Dropped
	if dropped < lines-maxQueue-2*maxBatch || l.length() > maxQueue {
		t.Errorf("%d of %d dropped, %d wait", dropped, lines, l.length())
	}
	r.hold.Unlock()
	r.await(t, lines-int(dropped))
	access.Complete(connection())
	r.await(t, lines-int(dropped)+1)
	stop()
	if got := l.Counts(); got != (Counts{Sent: lines - dropped + 1, Dropped: dropped}) {
		t.Errorf("%+v", got)
	}
}

// TestNoCollector: requests fail, nobody waits, and the end comes all the same.
func TestNoCollector(t *testing.T) {
	t.Parallel()
	l, stop := start(t, []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_TIMEOUT=50"})
	e := l.Entry(time.Now(), slog.LevelInfo, "x", "y")
	e.End()
	stop()
	if got := l.Counts(); got.Dropped != 1 || got.Sent != 0 {
		t.Errorf("%+v", got)
	}
}

func TestReadConfig(t *testing.T) {
	t.Parallel()
	pem := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(pem, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		vars string
		want Config
		err  string
	}{
		{vars: ""},
		{vars: "OTEL_EXPORTER_OTLP_ENDPOINT=http://c:4318", want: Config{Endpoint: "http://c:4318/v1/logs", Timeout: 10 * time.Second}},
		{vars: "OTEL_EXPORTER_OTLP_ENDPOINT=http://c:4318/base/", want: Config{Endpoint: "http://c:4318/base/v1/logs", Timeout: 10 * time.Second}},
		{vars: "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT=https://c/own", want: Config{Endpoint: "https://c/own", Timeout: 10 * time.Second}},
		{vars: "OTEL_EXPORTER_OTLP_ENDPOINT=c:4317 OTEL_EXPORTER_OTLP_PROTOCOL=grpc", want: Config{Endpoint: "https://c:4317", GRPC: true, Timeout: 10 * time.Second}},
		{vars: "OTEL_EXPORTER_OTLP_ENDPOINT=c:4317 OTEL_EXPORTER_OTLP_PROTOCOL=grpc OTEL_EXPORTER_OTLP_INSECURE=true", want: Config{Endpoint: "http://c:4317", GRPC: true, Timeout: 10 * time.Second}},
		{vars: "OTEL_EXPORTER_OTLP_ENDPOINT=http://c OTEL_EXPORTER_OTLP_LOGS_TIMEOUT=500 OTEL_EXPORTER_OTLP_COMPRESSION=gzip", want: Config{Endpoint: "http://c/v1/logs", Gzip: true, Timeout: 500 * time.Millisecond}},
		{vars: "OTEL_EXPORTER_OTLP_ENDPOINT=http://c OTEL_SDK_DISABLED=true"},
		{vars: "OTEL_EXPORTER_OTLP_ENDPOINT=http://c OTEL_LOGS_EXPORTER=none"},
		{vars: "OTEL_EXPORTER_OTLP_ENDPOINT=c:4318", err: "OTEL_EXPORTER_OTLP_ENDPOINT"},
		{vars: "OTEL_EXPORTER_OTLP_ENDPOINT=http://c OTEL_EXPORTER_OTLP_PROTOCOL=http/json", err: "OTEL_EXPORTER_OTLP_PROTOCOL"},
		{vars: "OTEL_EXPORTER_OTLP_ENDPOINT=http://c OTEL_EXPORTER_OTLP_COMPRESSION=zstd", err: "OTEL_EXPORTER_OTLP_COMPRESSION"},
		{vars: "OTEL_EXPORTER_OTLP_ENDPOINT=http://c OTEL_EXPORTER_OTLP_HEADERS=novalue", err: "OTEL_EXPORTER_OTLP_HEADERS"},
		{vars: "OTEL_EXPORTER_OTLP_ENDPOINT=https://c OTEL_EXPORTER_OTLP_CERTIFICATE=" + pem, err: "holds no certificate"},
	} {
		e := environ.New(strings.Fields(c.vars))
		got := ReadConfig(e, nil)
		err := e.Err()
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: error %v, want one about %s", c.vars, err, c.err)
			}
			continue
		}
		if err != nil || got.Endpoint != c.want.Endpoint || got.GRPC != c.want.GRPC || got.Timeout != c.want.Timeout || got.Gzip != c.want.Gzip {
			t.Errorf("%s: %+v, %v", c.vars, got, err)
		}
	}
	e := environ.New([]string{"OTEL_SERVICE_NAME=mine", "OTEL_RESOURCE_ATTRIBUTES=a=b%20c, service.name=no"})
	if got := ReadConfig(e, map[string]string{"a": "x", "d": "e"}).Resource; got["a"] != "b c" || got["d"] != "e" || got["service.name"] != "mine" {
		t.Errorf("resource %v", got)
	}
}
