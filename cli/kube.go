package main

import (
	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/cli/install"
)

// kubeFlags say which cluster is meant, with kubectl's names.
type kubeFlags struct {
	target install.Target
}

// kubeFlagsOf adds --kubeconfig and --context.
func kubeFlagsOf(c *cobra.Command) *kubeFlags {
	k := &kubeFlags{}
	fl := c.Flags()
	fl.StringVar(&k.target.Kubeconfig, "kubeconfig", "", "how to reach the cluster (default $KUBECONFIG, ~/.kube/config, or a pod's own account)")
	fl.StringVar(&k.target.Context, "context", "", "which context of the kubeconfig (default the current one)")
	return k
}

// meshNamespaceFlag adds the namespace that the mesh is installed in.
func (k *kubeFlags) meshNamespaceFlag(c *cobra.Command, name, short string) {
	c.Flags().StringVarP(&k.target.Namespace, name, short, install.DefaultNamespace, "namespace of the mesh")
}

func (k *kubeFlags) connect() (*install.Cluster, error) { return install.Connect(k.target) }
