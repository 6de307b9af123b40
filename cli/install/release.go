package install

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"helm.sh/helm/v4/pkg/action"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/kube"
	"helm.sh/helm/v4/pkg/release/common"
	release "helm.sh/helm/v4/pkg/release/v1"
	"helm.sh/helm/v4/pkg/storage/driver"

	"github.com/culvert-mesh/culvert/cli/laptop"
	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// releaseName is what Helm knows the mesh by.
const releaseName = "culvert"

// history is how many revisions are kept, to go back to.
const history = 10

// Installer changes what a cluster runs. One at a time.
type Installer struct {
	Cluster *Cluster
	Wait    bool          // until everything that was installed is ready
	Timeout time.Duration // of that
	Out     io.Writer     // what happens, in lines
	Force   bool          // Uninstall: leave a node that cannot be cleaned as it is
	Unlock  bool          // go on although another operation seems to be at work
}

// Install brings the mesh onto a cluster. Where it is already, it is brought to
// this program's version, and the values that it has are kept and added to: so the
// same command once more changes nothing and mends what was damaged.
func (i *Installer) Install(ctx context.Context, flags ValueFlags) error {
	c, vals, err := i.prepare(flags)
	if err != nil {
		return err
	}
	if err := i.awaitNamespace(ctx); err != nil {
		return err
	}
	last, err := i.last()
	if err != nil {
		return err
	}
	rendered, err := i.render(ctx, c, vals, last)
	if err != nil {
		return err
	}
	if err := i.allowed(ctx, rendered); err != nil {
		return err
	}
	if c, err = Umbrella(); err != nil { // rendering has changed it
		return err
	}
	if last != nil && last.Info.Status == common.StatusDeployed {
		i.say("%s %s is installed in %s (revision %d); bringing it to %s", releaseName, last.Chart.Metadata.Version, i.Cluster.Namespace, last.Version, c.Metadata.Version)
		return i.change(ctx, c, vals, last)
	}
	if last != nil && deployedBefore(i.revisions()) {
		return laptop.WithHint(fmt.Errorf("the release in %s is %s: %s", i.Cluster.Namespace, last.Info.Status, last.Info.Description),
			"culvert upgrade tries again; culvert upgrade --rollback goes back to what worked")
	}
	return i.first(ctx, c, vals, last)
}

// first installs where nothing works yet: last is an attempt that failed, or nil.
func (i *Installer) first(ctx context.Context, c *chart.Chart, vals map[string]any, last *release.Release) error {
	if err := i.makeNamespace(ctx); err != nil {
		return err
	}
	cfg, err := i.helm()
	if err != nil {
		return err
	}
	run := action.NewInstall(cfg)
	run.ReleaseName, run.Namespace = releaseName, i.Cluster.Namespace
	run.SkipCRDs, run.HideNotes, run.Timeout = true, true, i.Timeout
	run.WaitStrategy, run.ServerSideApply, run.ForceConflicts = kube.HookOnlyStrategy, true, true
	run.Replace = last != nil
	i.say("applying chart %s %s to namespace %s", c.Name(), c.Metadata.Version, i.Cluster.Namespace)
	done, err := run.RunWithContext(ctx, c, vals)
	if err != nil {
		return explain("install", err)
	}
	return i.settle(ctx, done.(*release.Release))
}

// Upgrade brings an installed mesh to this program's version and adds values to
// those that it has. When the new one does not become ready, the old one is put back.
func (i *Installer) Upgrade(ctx context.Context, flags ValueFlags) error {
	c, vals, err := i.prepare(flags)
	if err != nil {
		return err
	}
	last, err := i.installed()
	if err != nil {
		return err
	}
	if older(c.Metadata.Version, last.Chart.Metadata.Version) {
		return laptop.WithHint(fmt.Errorf("upgrade: %s is installed, and this program brings %s", last.Chart.Metadata.Version, c.Metadata.Version),
			"use the culvert of that version or a newer one; culvert upgrade --rollback goes back to the revision before")
	}
	rendered, err := i.render(ctx, c, vals, last)
	if err != nil {
		return err
	}
	if err := i.allowed(ctx, rendered); err != nil {
		return err
	}
	if c, err = Umbrella(); err != nil {
		return err
	}
	i.say("upgrading %s %s (revision %d) in %s to %s", releaseName, last.Chart.Metadata.Version, last.Version, i.Cluster.Namespace, c.Metadata.Version)
	return i.change(ctx, c, vals, last)
}

// errAtWork says that another command was quicker: what it does is not to be undone.
var errAtWork = errors.New("another command has changed the release at the same time")

// change upgrades a release and takes it back when that fails.
func (i *Installer) change(ctx context.Context, c *chart.Chart, vals map[string]any, last *release.Release) error {
	cfg, err := i.helm()
	if err != nil {
		return err
	}
	run := action.NewUpgrade(cfg)
	run.Namespace, run.ResetThenReuseValues, run.MaxHistory = i.Cluster.Namespace, true, history
	run.SkipCRDs, run.HideNotes, run.Timeout = true, true, i.Timeout
	run.WaitStrategy, run.ServerSideApply, run.ForceConflicts = kube.HookOnlyStrategy, "true", true
	done, err := run.RunWithContext(ctx, releaseName, c, vals)
	if err != nil {
		err = explain("upgrade", err)
	} else {
		err = i.settle(ctx, done.(*release.Release))
	}
	if err == nil || ctx.Err() != nil || last.Info.Status != common.StatusDeployed || errors.Is(err, errAtWork) {
		return err
	}
	i.say("failed: %v", err)
	i.say("going back to revision %d", last.Version)
	again := *i
	again.Timeout = max(i.Timeout, 3*time.Minute) // what worked is given time
	if back := again.back(ctx, last.Version); back != nil {
		return laptop.WithHint(fmt.Errorf("upgrade failed: %w; and so did going back to revision %d: %w", err, last.Version, back), "culvert check says what is wrong")
	}
	var hint *laptop.HintError
	failed := fmt.Errorf("upgrade failed and was taken back, revision %d runs again: %w", last.Version, err)
	if errors.As(err, &hint) {
		return laptop.WithHint(failed, "%s", hint.Hint)
	}
	return failed
}

// Rollback goes back to a revision; 0 is the newest that worked before the current one
// and was something else: after an upgrade that was taken back that is not the last.
func (i *Installer) Rollback(ctx context.Context, revision int) error {
	last, err := i.installed()
	if err != nil {
		return err
	}
	to, err := rollbackTarget(i.revisions(), revision)
	if err != nil {
		return err
	}
	i.say("going back from revision %d to revision %d in %s", last.Version, to, i.Cluster.Namespace)
	return i.back(ctx, to)
}

func (i *Installer) back(ctx context.Context, to int) error {
	cfg, err := i.helm()
	if err != nil {
		return err
	}
	run := action.NewRollback(cfg)
	run.Version, run.Timeout, run.MaxHistory = to, i.Timeout, history
	run.WaitStrategy, run.ServerSideApply, run.ForceConflicts = kube.HookOnlyStrategy, "true", true
	if err := run.Run(releaseName); err != nil {
		return explain("roll back", err)
	}
	now, err := i.installed()
	if err != nil {
		return err
	}
	return i.settle(ctx, now)
}

// revision is one entry of a release's history.
type revision struct {
	Number  int
	Status  common.Status
	Version string
	Same    bool // brings what the newest one brings
}

// rollbackTarget chooses the revision to go back to: the wanted one, or the newest
// that worked before the current one.
func rollbackTarget(all []revision, wanted int) (int, error) {
	slices.SortFunc(all, func(a, b revision) int { return cmp.Compare(b.Number, a.Number) })
	var known []string
	for n, r := range all {
		if n == 0 {
			continue // the current one
		}
		works := r.Status == common.StatusSuperseded || r.Status == common.StatusDeployed
		if works && (wanted == 0 && !r.Same || wanted == r.Number) {
			return r.Number, nil
		}
		if works {
			known = append(known, fmt.Sprintf("%d (%s)", r.Number, r.Version))
		}
	}
	if wanted == 0 || len(known) == 0 {
		return 0, laptop.WithHint(errors.New("rollback: there is no earlier revision that worked"), "culvert version shows what is installed; culvert install brings this program's version")
	}
	return 0, laptop.WithHint(fmt.Errorf("rollback: revision %d is not one to go back to", wanted), "revisions: %s", strings.Join(known, ", "))
}

func deployedBefore(all []revision) bool {
	return slices.ContainsFunc(all, func(r revision) bool {
		return r.Status == common.StatusSuperseded || r.Status == common.StatusDeployed
	})
}

// Render returns the manifests that Install would apply, and applies nothing.
func (i *Installer) Render(ctx context.Context, flags ValueFlags) (string, error) {
	c, vals, err := i.prepare(flags)
	if err != nil {
		return "", err
	}
	var last *release.Release
	if i.Cluster.Client != nil {
		if last, err = i.last(); err != nil {
			return "", err
		}
	}
	return i.render(ctx, c, vals, last)
}

func (i *Installer) prepare(flags ValueFlags) (*chart.Chart, map[string]any, error) {
	c, err := Umbrella()
	if err != nil {
		return nil, nil, err
	}
	vals, err := flags.Merge()
	return c, vals, err
}

// last is the release's newest revision, or nil. One that somebody is at work on is
// an error unless Unlock, which makes it a failed one.
func (i *Installer) last() (*release.Release, error) {
	cfg, err := i.helm()
	if err != nil {
		return nil, err
	}
	r, err := cfg.Releases.Last(releaseName)
	if errors.Is(err, driver.ErrReleaseNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, explain("read the release", err)
	}
	last := r.(*release.Release)
	if !last.Info.Status.IsPending() && last.Info.Status != common.StatusUninstalling {
		return last, nil
	}
	if !i.Unlock {
		return nil, laptop.WithHint(fmt.Errorf("the release in %s is %s since %s", i.Cluster.Namespace, last.Info.Status, last.Info.LastDeployed.UTC().Format(time.RFC3339)),
			"another command is at work; when it is certain that none is (it was killed), add --unlock")
	}
	last.SetStatus(common.StatusFailed, "cut off")
	return last, cfg.Releases.Update(last)
}

// installed is last, and an error when nothing is installed.
func (i *Installer) installed() (*release.Release, error) {
	last, err := i.last()
	if err == nil && last == nil {
		err = laptop.WithHint(fmt.Errorf("the mesh is not installed in namespace %s", i.Cluster.Namespace), "culvert install; or name the mesh's namespace with --namespace")
	}
	return last, err
}

// revisions is the release's history; none when it cannot be read.
func (i *Installer) revisions() (all []revision) {
	cfg, err := i.helm()
	if err != nil {
		return nil
	}
	list, _ := cfg.Releases.History(releaseName)
	var newest *release.Release
	var manifests []string
	for _, r := range list {
		r := r.(*release.Release)
		all = append(all, revision{Number: r.Version, Status: r.Info.Status, Version: r.Chart.Metadata.Version})
		if newest == nil || newest.Version < r.Version {
			newest = r
		}
		manifests = append(manifests, r.Manifest)
	}
	for n := range all {
		all[n].Same = manifests[n] == newest.Manifest
	}
	return all
}

// Installed says what is installed: the zero value when nothing is.
type Installed struct {
	Version  string    `json:"version,omitempty"`
	Revision int       `json:"revision,omitempty"`
	Status   string    `json:"status,omitempty"`
	Since    time.Time `json:"since,omitzero"`
	Note     string    `json:"note,omitempty"` // of the latest operation

	TrustDomain string `json:"trust_domain,omitempty"` // of the mesh's identities
}

// Installed returns what Helm knows of the release.
func (c *Cluster) Installed() (Installed, error) {
	i := Installer{Cluster: c, Out: io.Discard}
	cfg, err := i.helm()
	if err != nil {
		return Installed{}, err
	}
	r, err := cfg.Releases.Last(releaseName)
	if errors.Is(err, driver.ErrReleaseNotFound) {
		return Installed{}, nil
	}
	if err != nil {
		return Installed{}, explain("read the release", err)
	}
	last := r.(*release.Release)
	return Installed{last.Chart.Metadata.Version, last.Version, last.Info.Status.String(), last.Info.LastDeployed, last.Info.Description, trustDomain(last)}, nil
}

// trustDomain is what the release's values say: a person's, else the chart's.
func trustDomain(r *release.Release) string {
	for _, values := range []map[string]any{r.Config, r.Chart.Values} {
		if global, ok := values["global"].(map[string]any); ok {
			if name, ok := global["trustDomain"].(string); ok && name != "" {
				return name
			}
		}
	}
	return mesh.DefaultTrustDomain
}

// render returns manifests without asking the API server for anything but its version.
func (i *Installer) render(ctx context.Context, c *chart.Chart, vals map[string]any, last *release.Release) (string, error) {
	run := action.NewInstall(action.NewConfiguration())
	run.ReleaseName, run.Namespace, run.DryRunStrategy, run.HideNotes = releaseName, i.Cluster.Namespace, action.DryRunClient, true
	if last != nil {
		vals = overlay(last.Config, vals)
	}
	if err := i.likeCluster(run); err != nil {
		return "", err
	}
	done, err := run.RunWithContext(ctx, c, vals)
	if err != nil {
		return "", explain("render", err)
	}
	r := done.(*release.Release)
	var b strings.Builder
	b.WriteString(strings.TrimSpace(r.Manifest) + "\n")
	for _, h := range r.Hooks {
		fmt.Fprintf(&b, "---\n# Source: %s\n%s\n", h.Path, strings.TrimSpace(h.Manifest))
	}
	return b.String(), nil
}

// overlay returns base with over's values in their place.
func overlay(base, over map[string]any) map[string]any {
	out := map[string]any{}
	for k, v := range base {
		out[k] = v
	}
	for k, v := range over {
		a, isMap := out[k].(map[string]any)
		b, both := v.(map[string]any)
		if isMap && both {
			v = overlay(a, b)
		}
		out[k] = v
	}
	return out
}

// settle waits until what a release has is ready, if that was asked for.
func (i *Installer) settle(ctx context.Context, r *release.Release) error {
	if !i.Wait {
		i.say("applied (revision %d); culvert check says when it is ready", r.Version)
		return nil
	}
	start := time.Now()
	if err := i.Cluster.WaitReady(ctx, workloadsOf(r.Manifest, i.Cluster.Namespace), i.Timeout, i.Out); err != nil {
		return errors.Join(err, i.mark(r.Version, firstLine(err)))
	}
	i.say("ready after %.1f s: %s %s, revision %d", time.Since(start).Seconds(), releaseName, r.Chart.Metadata.Version, r.Version)
	return nil
}

// mark notes that a revision did not become ready, which Helm does not know: nobody
// should go back to it.
func (i *Installer) mark(version int, why string) error {
	cfg, err := i.helm()
	if err != nil {
		return err
	}
	r, err := cfg.Releases.Get(releaseName, version)
	if err != nil {
		return explain("read the release", err)
	}
	failed := r.(*release.Release)
	failed.SetStatus(common.StatusFailed, why)
	return cfg.Releases.Update(failed)
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return strings.TrimSuffix(line, ":")
}

func (i *Installer) say(format string, args ...any) { fmt.Fprintf(i.Out, format+"\n", args...) }
