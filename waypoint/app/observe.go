package app

import (
	"fmt"
	"net"
	"runtime"

	"github.com/culvert-mesh/culvert/pkg/admin"
	"github.com/culvert-mesh/culvert/pkg/logging"
	"github.com/culvert-mesh/culvert/pkg/netns"
	"github.com/culvert-mesh/culvert/pkg/run"
	"github.com/culvert-mesh/culvert/waypoint/config"
	waypointxds "github.com/culvert-mesh/culvert/waypoint/xds"
)

// adminServer serves what people ask of a running waypoint.
func (a *App) adminServer() *admin.Server {
	cfg := a.adminConfig("127.0.0.1", a.cfg.Ports.Admin)
	cfg.Levels = a.levels
	cfg.Quit = a.quit
	s := admin.New(cfg)
	s.Dump("workloads", func() any { return a.known.Dump().Workloads })
	s.Dump("services", func() any { return a.known.Dump().Services })
	s.Dump("certificates", func() any { return a.certs.Snapshot() })
	s.Dump("destinations", a.dumpDestinations)
	s.Dump("waiting", func() any { return a.decoder.Waiting() })
	s.Dump("connections", func() any { return a.pool.Snapshot() })
	s.Dump("tunnels", func() any { return a.tunnels.Snapshot() })
	s.Dump("config", a.dumpConfig)
	s.Dump("version", func() any { return map[string]string{"version": run.Version(), "goVersion": runtime.Version()} })
	return s
}

// destination is a config.Destination for people.
type destination struct {
	Name           string               `json:"name"`
	Addresses      []string             `json:"addresses"`
	Protocol       string               `json:"protocol"`
	Routes         string               `json:"routeConfig,omitempty"`
	Tables         []config.SourceTable `json:"routeTables,omitempty"`
	Cluster        string               `json:"cluster,omitempty"`
	HTTPFilters    []string             `json:"httpFilters,omitempty"`
	NetworkFilters []string             `json:"networkFilters,omitempty"`
}

func (a *App) dumpDestinations() any {
	out := []destination{}
	for _, d := range a.store.Load().Destinations {
		x := destination{Name: d.Name, Protocol: d.Protocol.String(), Routes: d.Routes, Tables: d.Tables, Cluster: d.Cluster}
		for _, addr := range d.Addresses {
			x.Addresses = append(x.Addresses, addr.String())
		}
		for _, f := range d.HTTPFilters {
			x.HTTPFilters = append(x.HTTPFilters, f.Name())
		}
		for _, f := range d.NetworkFilters {
			x.NetworkFilters = append(x.NetworkFilters, f.Name())
		}
		out = append(out, x)
	}
	return out
}

// dumpConfig is the configuration without secrets.
func (a *App) dumpConfig() any {
	c := a.cfg
	return map[string]any{
		"gateway":    c.Namespace + "/" + c.Gateway,
		"pod":        c.PodName,
		"identity":   c.Identity().String(),
		"node":       c.NodeName,
		"network":    c.Network,
		"clusterId":  c.Cluster,
		"xdsAddress": c.XDS.Address,
		"caAddress":  c.CA.Address,
		"drainTime":  c.DrainTime.String(),
		"features":   waypointxds.Features(),
	}
}

// adminConfig is one of the local ports. A successor may open it while we still do.
func (a *App) adminConfig(host string, port uint16) admin.Config {
	return admin.Config{
		Addr:   net.JoinHostPort(host, fmt.Sprint(port)),
		Listen: netns.ListenShared,
		Name:   "waypoint",
		Log:    logging.Scope(a.log, "admin"),
	}
}
