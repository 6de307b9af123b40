package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/cli/install"
	"github.com/culvert-mesh/culvert/cli/laptop"
)

// installFlags are what verbs that change a cluster have in common.
type installFlags struct {
	*kubeFlags
	values  install.ValueFlags
	wait    bool
	timeout time.Duration
	unlock  bool
}

func installFlagsOf(c *cobra.Command) *installFlags {
	f := &installFlags{kubeFlags: kubeFlagsOf(c)}
	f.meshNamespaceFlag(c, "namespace", "n")
	fl := c.Flags()
	fl.DurationVar(&f.timeout, "timeout", 5*time.Minute, "how long to wait")
	fl.BoolVar(&f.unlock, "unlock", false, "go on although another operation seems to be at work, because it was killed")
	return f
}

// valueFlags adds the flags of values and of waiting.
func (f *installFlags) valueFlags(c *cobra.Command) {
	fl := c.Flags()
	fl.StringArrayVarP(&f.values.Files, "values", "f", nil, "file of values (repeatable; \"-\" is standard input)")
	fl.StringArrayVar(&f.values.Set, "set", nil, "one value, KEY=VALUE (repeatable)")
	fl.StringArrayVar(&f.values.SetText, "set-string", nil, "one value that is text, KEY=VALUE (repeatable)")
	fl.StringVar(&f.values.Profile, "profile", "", "values for a purpose; --profile help lists them")
	fl.StringVar(&f.values.Platform, "platform", "", "what is particular about a platform; --platform help lists them")
	fl.BoolVar(&f.wait, "wait", true, "until everything is ready")
}

func (f *installFlags) installer(e *env, c *install.Cluster) *install.Installer {
	return &install.Installer{Cluster: c, Wait: f.wait, Timeout: f.timeout, Unlock: f.unlock, Out: e.stdout}
}

func installCommand(e *env) *cobra.Command {
	c := &cobra.Command{
		Use:   "install",
		Short: "Install the mesh on a Kubernetes cluster",
		Long: `Install the mesh on a Kubernetes cluster.

Where it is installed already, it is brought to this program's version; values that it
has are kept, and those given are added. So the same command once more changes nothing
and mends what was damaged.

Values come, weakest first, from the charts, --profile, --platform, -f and --set. The
release is Helm's: helm list -n culvert-system shows it.`,
		Example: "  culvert install\n  culvert install --platform gke --namespace kube-system --set global.logLevel=debug\n  culvert install --dry-run > mesh.yaml",
		Args:    cobra.NoArgs,
	}
	f := installFlagsOf(c)
	f.valueFlags(c)
	var dry, print bool
	c.Flags().BoolVar(&dry, "dry-run", false, "write the manifests to standard output and change nothing")
	c.Flags().BoolVar(&print, "print-values", false, "write every value with its meaning to standard output")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if done, err := explainValues(e, f, print); done {
			return err
		}
		cluster, err := f.connect()
		if err != nil {
			return err
		}
		in := f.installer(e, cluster)
		if dry {
			manifest, err := in.Render(c.Context(), f.values)
			if err == nil {
				_, err = fmt.Fprint(e.stdout, manifest)
			}
			return err
		}
		if err := precheck(c, e, cluster); err != nil {
			return err
		}
		return in.Install(c.Context(), f.values)
	}
	return c
}

// precheck refuses to install what cannot work.
func precheck(c *cobra.Command, e *env, cluster *install.Cluster) error {
	results := install.Check(cluster.Collect(c.Context(), version), true)
	for _, r := range results {
		switch r.Status {
		case install.Failed:
			return laptop.WithHint(fmt.Errorf("this cluster cannot take the mesh: %s: %s", r.Check, r.Line()), "%s", r.Fix)
		case install.Warning:
			fmt.Fprintf(e.stderr, "! %s: %s (%s)\n", r.Check, r.Line(), r.Fix)
		}
	}
	return nil
}

func upgradeCommand(e *env) *cobra.Command {
	c := &cobra.Command{
		Use:   "upgrade",
		Short: "Bring an installed mesh to this program's version, or back",
		Long: `Bring an installed mesh to this program's version, or back.

Its values are kept, and those given are added. A version that does not become ready
is taken back by itself. Node by node, the new ztunnel takes the old one's sockets
over, so that no connection is lost.`,
		Example: "  culvert upgrade --set global.logLevel=debug\n  culvert upgrade --rollback",
		Args:    cobra.NoArgs,
	}
	f := installFlagsOf(c)
	f.valueFlags(c)
	var back bool
	var revision int
	c.Flags().BoolVar(&back, "rollback", false, "go back to the newest revision that worked before this one")
	c.Flags().IntVar(&revision, "revision", 0, "with --rollback: to this revision")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if done, err := explainValues(e, f, false); done {
			return err
		}
		if revision != 0 && !back || back && f.values.Given() {
			return laptop.WithHint(fmt.Errorf("--rollback goes with --revision, and with no values"), "culvert upgrade --rollback --revision 3")
		}
		cluster, err := f.connect()
		if err != nil {
			return err
		}
		if back {
			return f.installer(e, cluster).Rollback(c.Context(), revision)
		}
		return f.installer(e, cluster).Upgrade(c.Context(), f.values)
	}
	return c
}

func uninstallCommand(e *env) *cobra.Command {
	c := &cobra.Command{
		Use:   "uninstall",
		Short: "Take the mesh off a Kubernetes cluster; nothing of it is left",
		Long: `Take the mesh off a Kubernetes cluster; nothing of it is left.

Pods go on running and talk in the clear. Objects that users wrote, and the
definitions of their kinds (CRDs), are kept; --purge deletes both: every
AuthorizationPolicy, Gateway and HTTPRoute of the cluster, whoever uses it.`,
		Args: cobra.NoArgs,
	}
	f := installFlagsOf(c)
	var purge, force bool
	c.Flags().BoolVar(&force, "force", false, "go on when a node cannot be cleaned, such as one that is gone for good")
	c.Flags().BoolVar(&purge, "purge", false, "also delete the definitions (CRDs) that came with the mesh, and EVERY object of those kinds")
	c.RunE = func(c *cobra.Command, _ []string) error {
		cluster, err := f.connect()
		if err != nil {
			return err
		}
		if purge {
			fmt.Fprintln(e.stderr, "! --purge: every policy, Gateway and route of this cluster is deleted with its definition")
		}
		in := f.installer(e, cluster)
		in.Force = force
		return in.Uninstall(c.Context(), purge)
	}
	return c
}
