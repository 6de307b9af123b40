package app

import (
	"context"
	"strings"

	"github.com/culvert-mesh/culvert/pkg/environ"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/run"
)

// A dedicated ztunnel (PROXY_MODE=dedicated) serves one workload, in whose network
// namespace it runs: beside a virtual machine's programs, say. There is no node
// agent; what redirects the traffic tells ztunnel's own by its user, not by a mark;
// and the certificate is asked for under the workload's own credentials.

// readMode reads which workloads are served.
func (c *Config) readMode(e *environ.Env) {
	switch mode := e.Text("PROXY_MODE", "shared"); mode {
	case "shared":
		return
	case "dedicated":
	default:
		e.Failf("PROXY_MODE", "%q is not known; there are shared and dedicated", mode)
		return
	}
	parts := strings.Split(e.Text("PROXY_WORKLOAD_INFO", ""), "/")
	if len(parts) != 3 || parts[0] == "" || parts[1] == "" || parts[2] == "" {
		e.Failf("PROXY_WORKLOAD_INFO", "PROXY_MODE=dedicated needs namespace/name/serviceaccount")
		return
	}
	c.Dedicated = mesh.PodInfo{Namespace: parts[0], Name: parts[1], ServiceAccount: parts[2]}
	c.ZDSSocket = ""
	if _, set := e.Lookup("PACKET_MARK"); !set {
		c.Mark = 0
	}
}

// dedicated reports whether one workload is served, in our own namespace.
func (c Config) dedicated() bool { return c.Dedicated != mesh.PodInfo{} }

// serveAlone serves the one workload of a dedicated ztunnel.
func (a *App) serveAlone(ctx, serving context.Context) error {
	if a.xds != nil {
		select {
		case <-a.known:
		case <-serving.Done():
			return nil
		}
	}
	if err := a.alone.Listen(serving); err != nil {
		return err
	}
	a.listening()
	var g run.Group
	g.Add("serve", a.alone.Run)
	g.Add("drain", func(ctx context.Context) error {
		select {
		case <-serving.Done():
		case <-ctx.Done():
		}
		deadline, done := context.WithTimeout(ctx, a.cfg.DrainTime)
		defer done()
		a.alone.Drain(deadline)
		return nil
	})
	return g.Run(ctx)
}
