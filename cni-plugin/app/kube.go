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

// connect finds out where pods come from and where their namespaces are.
func connect(parts *Parts, g *run.Group, cfg Config) error {
	parts.Finder = podns.Dir(cfg.NetnsDir)
	if cfg.NetnsDir == "" {
		parts.Finder = podns.NewProc(cfg.Proc)
	}
	if !cfg.Kube {
		layers := folder.Layers{Base: cfg.Folders, Objects: cfg.Objects, Patches: append(cfg.Patches, cfg.PatchesOut)}
		parts.Source = podsource.NewFolders(cfg.Node, layers, parts.Log)
		return nil
	}
	config, err := kubeConfig(cfg.Kubeconfig)
	if err != nil {
		return err
	}
	if parts.Source, err = apiserver.NewSource(config, cfg.Node, parts.Log); err != nil {
		return err
	}
	notes, err := apiserver.NewAnnotator(config, parts.Log)
	if err != nil {
		return err
	}
	parts.Notes = notes
	g.Add("annotations", notes.Run)
	return nil
}

// kubeConfig says how to reach the API server.
func kubeConfig(path string) (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags("", path) // without a path: as a pod does
	if err != nil {
		return nil, fmt.Errorf("API server: %w", err)
	}
	config.UserAgent = "culvert-agent/" + run.Version()
	config.QPS, config.Burst = 50, 100 // a node may have a few hundred pods to annotate
	return config, nil
}

// newInstaller keeps the plugin in the runtime's configuration.
func newInstaller(cfg Config, log *slog.Logger) (*install.Installer, error) {
	entry, err := json.Marshal(map[string]string{"type": plugin.Type, "agentSocket": cfg.Socket, "eligibilityFile": cfg.Eligibility})
	if err != nil {
		return nil, err
	}
	c := cfg.CNI
	c.Entry, c.Log = entry, log
	return install.New(c), nil
}

// uninstall takes the plugin off the node. It is for when the mesh goes, not for
// an upgrade; no agent may run, or it would put the plugin back.
func uninstall(cfg Config, log *slog.Logger) error {
	installer, err := newInstaller(cfg, log)
	if err != nil {
		return err
	}
	if err := installer.Remove(); err != nil {
		return fmt.Errorf("uninstall the CNI plugin: %w", err)
	}
	log.Info("CNI plugin removed", "folder", cfg.CNI.Folder)
	return nil
}
