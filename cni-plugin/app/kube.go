package app

import (
	"encoding/json"
	"fmt"
	"log/slog"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/culvert-mesh/culvert/cni-plugin/apiserver"
	"github.com/culvert-mesh/culvert/cni-plugin/install"
	"github.com/culvert-mesh/culvert/cni-plugin/plugin"
	"github.com/culvert-mesh/culvert/cni-plugin/podns"
	"github.com/culvert-mesh/culvert/cni-plugin/podsource"
	"github.com/culvert-mesh/culvert/pkg/folder"
	"github.com/culvert-mesh/culvert/pkg/run"
)

// kube is what an agent of a Kubernetes node has beside its pods.
type kube struct {
	set    *apiserver.DaemonSet // nil: it belongs to none
	node   *apiserver.Node
	events *apiserver.Events
	roots  *apiserver.ConfigMap // nil: certificates come from files
}

// connect finds out where pods come from and where their namespaces are. It
// returns nil for a node that has no API server.
func connect(parts *Parts, g *run.Group, cfg Config) (*kube, error) {
	parts.Finder = podns.Dir(cfg.NetnsDir)
	if cfg.NetnsDir == "" {
		parts.Finder = podns.NewProc(cfg.Proc)
	}
	if !cfg.Kube {
		layers := folder.Layers{Base: cfg.Folders, Objects: cfg.Objects, Patches: append(cfg.Patches, cfg.PatchesOut)}
		parts.Source = podsource.NewFolders(cfg.Node, layers, parts.Log)
		return nil, nil
	}
	config, err := kubeConfig(cfg.Kubeconfig)
	if err != nil {
		return nil, err
	}
	if parts.Source, err = apiserver.NewSource(config, cfg.Node, parts.Log); err != nil {
		return nil, err
	}
	notes, err := apiserver.NewAnnotator(config, parts.Log)
	if err != nil {
		return nil, err
	}
	parts.Notes = notes
	g.Add("annotations", notes.Run)
	k := &kube{}
	if k.events, err = apiserver.NewEvents(config, cfg.Node, parts.Log); err != nil {
		return nil, err
	}
	parts.Events = k.events
	g.Add("events", k.events.Run)
	if k.node, err = apiserver.NewNode(config, cfg.Node); err != nil {
		return nil, err
	}
	if cfg.Proof.RootConfigMap != "" {
		if k.roots, err = apiserver.NewConfigMap(config, cfg.Namespace, cfg.Proof.RootConfigMap, rootKey); err != nil {
			return nil, err
		}
	}
	if cfg.DaemonSet == "" {
		return k, nil
	}
	if k.set, err = apiserver.NewDaemonSet(config, cfg.Namespace, cfg.DaemonSet, cfg.Node, parts.Log); err != nil {
		return nil, err
	}
	g.Add("DaemonSet", k.set.Run)
	return k, nil
}

// kubeConfig says how to reach the API server.
func kubeConfig(path string) (*rest.Config, error) {
	from := func() (*rest.Config, error) { return clientcmd.BuildConfigFromFlags("", path) }
	if path == "" {
		from = rest.InClusterConfig // as a pod does; its token is read again as often as it changes
	}
	config, err := from()
	if err != nil {
		return nil, fmt.Errorf("API server: %w", err)
	}
	config.UserAgent = "culvert-agent/" + run.Version()
	config.QPS, config.Burst = 50, 100 // a node may have a few hundred pods to annotate
	return config, nil
}

// newInstaller keeps the plugin in the runtime's configuration; told, which may be
// nil, is called after every look at it.
func newInstaller(cfg Config, log *slog.Logger, told func(changes int, err error)) (*install.Installer, error) {
	settings := map[string]string{"type": plugin.Type, "agentSocket": cfg.Socket, "eligibilityFile": cfg.Eligibility}
	if cfg.Namespace != "" {
		settings["systemNamespace"] = cfg.Namespace
	}
	entry, err := json.Marshal(settings)
	if err != nil {
		return nil, err
	}
	c := cfg.CNI
	c.Entry, c.Log, c.Told = entry, log, told
	return install.New(c), nil
}
