package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/cli/install"
	"github.com/culvert-mesh/culvert/cli/laptop"
)

// kubeFlags say which cluster is meant, with kubectl's names.
type kubeFlags struct {
	target install.Target
	given  func() bool // one of them was on the command line
}

// kubeFlagsOf adds --kubeconfig and --context.
func kubeFlagsOf(c *cobra.Command) *kubeFlags {
	k := &kubeFlags{}
	fl := c.Flags()
	fl.StringVar(&k.target.Kubeconfig, "kubeconfig", "", "how to reach the cluster (default $KUBECONFIG, ~/.kube/config, or a pod's own account)")
	fl.StringVar(&k.target.Context, "context", "", "which context of the kubeconfig (default the current one)")
	k.given = func() bool { return fl.Changed("kubeconfig") || fl.Changed("context") }
	return k
}

// meshNamespaceFlag adds the namespace that the mesh is installed in.
func (k *kubeFlags) meshNamespaceFlag(c *cobra.Command, name, short string) {
	c.Flags().StringVarP(&k.target.Namespace, name, short, install.DefaultNamespace, "namespace of the mesh")
}

func (k *kubeFlags) connect() (*install.Cluster, error) { return install.Connect(k.target) }

// meshOrCluster decides what a reading verb reads: the cluster that its flags name;
// a mesh of this machine, if one runs; else the current cluster of the kubeconfig.
func meshOrCluster(name string, nameGiven bool, k *kubeFlags) (*laptop.Client, *install.Cluster, error) {
	if k.given() {
		c, err := k.connect()
		return nil, c, err
	}
	client, err := laptop.NewClient(name)
	if err == nil || nameGiven {
		return client, nil, err
	}
	c, kubeErr := k.connect()
	if kubeErr != nil {
		var hint *laptop.HintError
		if errors.As(err, &hint) {
			return nil, nil, laptop.WithHint(err, "%s; or name a cluster with --kubeconfig", hint.Hint)
		}
		return nil, nil, fmt.Errorf("%w; and %w", err, kubeErr)
	}
	return nil, c, nil
}
