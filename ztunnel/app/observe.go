package app

import (
	"encoding/json"
	"net/http"
	"runtime"
	"strings"
	"time"

	"github.com/culvert-mesh/culvert/pkg/admin"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/run"
	"github.com/culvert-mesh/culvert/ztunnel/proxy"
	"github.com/culvert-mesh/culvert/ztunnel/why"
)

// adminServer serves what people and istioctl ask of a running ztunnel.
func (a *App) adminServer() *admin.Server {
	cfg := a.server("127.0.0.1", a.cfg.AdminPort)
	cfg.Levels = rustLevels{a.levels}
	cfg.Quit = a.quit
	s := admin.New(cfg)
	s.Dump("workloads", func() any { return a.store.Dump().Workloads })
	s.Dump("services", func() any { return a.store.Dump().Services })
	s.Dump("policies", func() any { return a.store.Dump().Policies })
	s.Dump("stagedServices", func() any { return a.store.Dump().StagedServices })
	s.Dump("certificates", func() any { return a.certs.Snapshot() })
	s.Dump("workloadState", a.dumpPods)
	s.Dump("config", a.dumpConfig)
	s.Dump("handover", a.dumpHandover)
	s.Dump("staticConfig", func() any { return map[string]any{"localXdsPath": a.cfg.LocalXDSPath} })
	s.Dump("version", dumpVersion)
	s.Handle("/debug/failures", "the latest failed connections; ?pod=NAMESPACE/NAME, ?since=RFC 3339 (JSON)", http.HandlerFunc(a.failures))
	s.Handle("/debug/tunnels", "tunnels to and from other proxies (JSON)", http.HandlerFunc(a.tunnels))
	s.Handle("/debug/why", "POST a question: what would become of a connection, and why (JSON)", http.HandlerFunc(a.why))
	return s
}

// failures serves the flight recorder.
func (a *App) failures(w http.ResponseWriter, r *http.Request) {
	pod := r.URL.Query().Get("pod")
	var since time.Time
	if text := r.URL.Query().Get("since"); text != "" {
		var err error
		if since, err = time.Parse(time.RFC3339Nano, text); err != nil {
			http.Error(w, "since: "+err.Error(), http.StatusBadRequest)
			return
		}
	}
	writeJSON(w, a.node.Failures(func(f *proxy.Failure) bool { return (pod == "" || f.Involves(pod)) && f.Time.After(since) }))
}

func (a *App) tunnels(w http.ResponseWriter, _ *http.Request) { writeJSON(w, a.node.Tunnels()) }

// maxQuestion bounds a question, in bytes.
const maxQuestion = 64 << 10

// why answers a why.Question with a why.Answer.
func (a *App) why(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "POST asks", http.StatusMethodNotAllowed)
		return
	}
	var q why.Question
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxQuestion)).Decode(&q); err != nil {
		http.Error(w, "question: "+err.Error(), http.StatusBadRequest)
		return
	}
	if q.Arriving == nil && !q.Dst.IsValid() || q.Arriving != nil && !q.Arriving.Dst.IsValid() {
		http.Error(w, "question: want pod and dst, or pod and arriving with dst", http.StatusBadRequest)
		return
	}
	writeJSON(w, a.explainer().Explain(r.Context(), q))
}

// explainer is this ztunnel's live state, for questions.
func (a *App) explainer() *why.Node {
	return &why.Node{
		Name:        a.cfg.NodeName,
		Network:     a.cfg.Network,
		Loopback:    a.cfg.AppLoopback,
		Mesh:        a.store,
		Pod:         a.served,
		Certificate: a.certificateState,
	}
}

// served returns the proxy of a pod that was handed to us.
func (a *App) served(info mesh.PodInfo) (why.Proxy, bool) {
	for _, s := range a.pods.States() {
		if p, ok := s.Proxy.(*proxy.Pod); ok && s.Info == info {
			return p, s.Up
		}
	}
	return nil, false
}

func (a *App) certificateState(id mesh.Identity) (state string, until time.Time) {
	for _, c := range a.certs.Snapshot() {
		if c.Identity != id.String() {
			continue
		}
		if len(c.CertChain) > 0 {
			until, _ = time.Parse(time.RFC3339, c.CertChain[0].ExpirationTime)
		}
		return strings.TrimSpace(c.State), until
	}
	return "not held; it is asked for when it is needed", time.Time{}
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(v)
}

// podState is one entry of workloadState, in istioctl's shape.
type podState struct {
	State       string            `json:"state"`
	Info        podInfo           `json:"info"`
	Connections proxy.Connections `json:"connections"`
}

type podInfo struct {
	Name           string `json:"name"`
	Namespace      string `json:"namespace"`
	TrustDomain    string `json:"trustDomain"`
	ServiceAccount string `json:"serviceAccount"`
}

func (a *App) dumpPods() any {
	out := map[string]podState{}
	for _, s := range a.pods.States() {
		ps := podState{
			State: "Pending",
			Info:  podInfo{Name: s.Info.Name, Namespace: s.Info.Namespace, ServiceAccount: s.Info.ServiceAccount},
		}
		if s.Up {
			ps.State = "Up"
		}
		if w := a.store.WorkloadByInfo(s.Info, a.cfg.NodeName); w != nil {
			ps.Info.TrustDomain = w.TrustDomain
		}
		if p, ok := s.Proxy.(*proxy.Pod); ok {
			ps.Connections = p.Connections()
		}
		out[string(s.UID)] = ps
	}
	return out
}

// dumpConfig is the configuration without secrets.
func (a *App) dumpConfig() any {
	c := a.cfg
	return map[string]any{
		"localNode":              c.NodeName,
		"network":                c.Network,
		"clusterId":              c.Cluster,
		"clusterDomain":          c.ClusterDomain,
		"xdsAddress":             c.XDS.Address,
		"caAddress":              c.CA.Address,
		"fakeCa":                 c.FakeCA,
		"secretTtl":              c.SecretTTL.String(),
		"inpodUds":               c.ZDSSocket,
		"inpodPortReuse":         c.ReusePort,
		"packetMark":             c.Mark,
		"poolMaxStreamsPerConn":  c.PoolMaxStreams,
		"poolUnusedReleaseAfter": c.PoolIdle.String(),
		"selfTerminationDeadline": map[string]any{
			"secs": c.DrainTime.Seconds(),
		},
		"threads":       runtime.GOMAXPROCS(0),
		"trustDomain":   c.TrustDomain,
		"adminPort":     c.AdminPort,
		"statsPort":     c.StatsPort,
		"readinessPort": c.ReadyPort,
		"logFilter":     a.levels.String(),
		"proxyMetadata": c.Metadata,
	}
}

// dumpVersion has upstream's keys, also those that mean nothing here.
func dumpVersion() any {
	return map[string]string{
		"version": run.Version(), "gitRevision": run.Revision(), "goVersion": runtime.Version(), "rustVersion": "none",
		"buildProfile": "release", "buildStatus": "Clean", "istioVersion": run.Version(), "cryptoProvider": "go crypto/tls",
	}
}
