package app

import (
	"runtime"

	"github.com/culvert-mesh/culvert/pkg/admin"
	"github.com/culvert-mesh/culvert/pkg/run"
	"github.com/culvert-mesh/culvert/ztunnel/proxy"
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
	s.Dump("staticConfig", func() any { return map[string]any{"localXdsPath": a.cfg.LocalXDSPath} })
	s.Dump("version", dumpVersion)
	return s
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

func dumpVersion() any {
	return map[string]string{"version": run.Version(), "goVersion": runtime.Version(), "gitRevision": run.Revision()}
}
