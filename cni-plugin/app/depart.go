package app

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"github.com/culvert-mesh/culvert/cni-plugin/apiserver"
	"github.com/culvert-mesh/culvert/cni-plugin/podns"
)

// releaseGrace is how long connections may go on when the mesh leaves the node. A
// pod has half a minute to end.
const releaseGrace = 15 * time.Second

// depart does what is to be done at the agent's end: nothing when a successor
// comes, who finds plugin, rules and pods as they are; and takes the mesh off the
// node when none does.
func (p *process) depart(ctx context.Context) {
	if p.kube == nil || p.kube.set == nil {
		return
	}
	succeeded, why := p.kube.set.Succeeded(ctx)
	if succeeded {
		p.log.Info("the agent ends and leaves the node as it is", "because", why)
		return
	}
	p.log.Info("the agent ends and takes the mesh off this node", "because", why)
	close(p.uninstall)
	if p.installer != nil {
		if err := p.installer.Remove(); err != nil {
			p.log.Error("the CNI plugin is not removed", "error", err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, releaseGrace)
	defer cancel()
	if err := p.agent.Release(ctx); err != nil {
		p.log.Error("pods keep rules of the mesh", "error", err)
	}
	if err := forgetProbes(); err != nil {
		p.log.Error("the node still rewrites probes", "error", err)
	}
	if err := p.kube.node.RemoveCondition(ctx, ConditionType); err != nil {
		p.log.Warn("the node's condition is not removed", "error", err)
	}
	removeFiles(p.cfg, p.log)
}

// uninstall takes the mesh off the node: the plugin, the rules of all pods, the
// files. It is for when the mesh goes, not for an upgrade; no agent may run, or it
// would put everything back. It goes as far as it can, and its error says what is left.
func uninstall(ctx context.Context, cfg Config, log *slog.Logger) error {
	installer, err := newInstaller(cfg, log, nil)
	if err != nil {
		return err
	}
	var errs []error
	if err := installer.Remove(); err != nil {
		errs = append(errs, fmt.Errorf("uninstall the CNI plugin: %w", err))
	} else {
		log.Info("CNI plugin removed", "folder", cfg.CNI.Folder)
	}
	namespaces := podns.Bound(cfg.Mounts)
	found, err := podns.NewProc(cfg.Proc).All()
	errs = append(errs, err)
	namespaces = append(namespaces, found...)
	n, err := clean(ctx, namespaces, cleanGrace)
	for _, ns := range namespaces {
		ns.Close()
	}
	if errs = append(errs, err, forgetProbes()); n > 0 {
		log.Info("rules removed", "namespaces", n)
	}
	if cfg.Kube {
		if err := forgetNode(ctx, cfg); err != nil {
			log.Warn("the node's condition is not removed", "error", err)
		}
	}
	removeFiles(cfg, log)
	return errors.Join(errs...)
}

func forgetNode(ctx context.Context, cfg Config) error {
	config, err := kubeConfig(cfg.Kubeconfig)
	if err != nil {
		return err
	}
	node, err := apiserver.NewNode(config, cfg.Node)
	if err != nil {
		return err
	}
	return node.RemoveCondition(ctx, ConditionType)
}

// removeFiles removes what only an agent writes and only a plugin reads.
func removeFiles(cfg Config, log *slog.Logger) {
	for _, path := range []string{cfg.Eligibility, cfg.Socket} {
		switch err := os.Remove(path); {
		case err == nil:
			log.Info("file removed", "path", path)
		case !errors.Is(err, fs.ErrNotExist):
			log.Warn("file not removed", "path", path, "error", err)
		}
	}
	if err := os.RemoveAll(cfg.proofDir()); err != nil {
		log.Warn("folder not removed", "path", cfg.proofDir(), "error", err)
	}
}
