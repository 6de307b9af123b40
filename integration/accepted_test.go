package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/controlplane/compile"
	"github.com/culvert-mesh/culvert/controlplane/model"
	"github.com/culvert-mesh/culvert/controlplane/source/file"
	server "github.com/culvert-mesh/culvert/controlplane/xds"
	"github.com/culvert-mesh/culvert/controlplane/xds/waypoint"
	"github.com/culvert-mesh/culvert/controlplane/xds/workload"
	"github.com/culvert-mesh/culvert/pkg/folder"
	"github.com/culvert-mesh/culvert/pkg/golden"
	"github.com/culvert-mesh/culvert/pkg/workloads"
	"github.com/culvert-mesh/culvert/pkg/workloads/discovery"
	"github.com/culvert-mesh/culvert/pkg/xds"
	"github.com/culvert-mesh/culvert/waypoint/config"
	wpxds "github.com/culvert-mesh/culvert/waypoint/xds"
)

// TestAccepted: what the control plane makes of its own cases, the proxies accept:
// no resource is refused, and no destination waits for another.
func TestAccepted(t *testing.T) {
	t.Parallel()
	golden.Cases(t, "../controlplane/app/testdata/*.txtar", func(t *testing.T, c *golden.Case) {
		dir := t.TempDir()
		for _, f := range c.Files() {
			if !strings.HasPrefix(f.Name, "want/") {
				if err := os.WriteFile(filepath.Join(dir, f.Name), f.Data, 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
		decoders := map[string]*wpxds.Decoder{}
		known := workloads.New()
		address := discovery.Addresses(known)
		policies := discovery.Policies(known, nil)
		give := func(s xds.Subscription, r *server.Resource) {
			sent, err := r.Decode()
			if err != nil {
				t.Fatal(err)
			}
			for _, rejected := range s.Handle([]xds.Resource{{Name: sent.Name, Body: sent.Resource}}, nil) {
				t.Errorf("%s %s: %v", s.TypeURL, sent.Name, rejected.Err)
			}
		}
		m := model.New(compile.Mesh{})
		for _, change := range m.Apply(file.Decode(folder.Load(folder.Layers{Base: []string{dir}}))) {
			for _, r := range workload.Resources(change.Output) {
				for _, s := range []xds.Subscription{address, policies} {
					if s.TypeURL == r.Type {
						give(s, &r)
					}
				}
			}
			for _, r := range waypoint.Resources(change.Output) {
				if decoders[r.Scope] == nil {
					decoders[r.Scope] = wpxds.NewDecoder(config.NewStore())
				}
				for _, s := range decoders[r.Scope].Subscriptions() {
					if s.TypeURL == r.Type {
						give(s, &r)
					}
				}
			}
		}
		for scope, d := range decoders {
			if waiting := d.Waiting(); len(waiting) > 0 {
				t.Errorf("waypoint %s: %v", scope, waiting)
			}
		}
	})
}
