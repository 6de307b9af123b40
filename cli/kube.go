package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/cli/install"
	"github.com/culvert-mesh/culvert/cli/laptop"
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

// meshReader is what verbs ask of a mesh: of this machine, or of a cluster.
type meshReader interface {
	Status(ctx context.Context) (*laptop.Status, error)
	Certs(ctx context.Context) ([]laptop.HeldCerts, error)
	// Admin asks "ztunnel-NODE", another component, or a waypoint's NAMESPACE/NAME.
	Admin(ctx context.Context, target, method, path string, body []byte) ([]byte, error)
}

// readerFlags are the flags of verbs that read a mesh.
type readerFlags struct {
	*kubeFlags
	name  *string
	given func(flag string) bool
}

// readerFlagsOf adds --name, and the flags that name a cluster in its place.
func readerFlagsOf(e *env, c *cobra.Command) *readerFlags {
	r := &readerFlags{name: nameFlag(e, c), kubeFlags: kubeFlagsOf(c), given: c.Flags().Changed}
	r.meshNamespaceFlag(c, "mesh-namespace", "")
	return r
}

// part returns what the mesh says of itself and of some namespaces; with none, of all.
func (r *readerFlags) part(ctx context.Context, namespaces []string) (*laptop.Status, error) {
	client, err := r.open(ctx)
	if err != nil {
		return nil, err
	}
	st, err := client.Status(ctx)
	if err == nil {
		only(st, namespaces)
	}
	return st, err
}

// open returns the mesh that the flags name: a cluster's, or one of this machine. With
// neither it is the one that runs on this machine, else that of the current cluster.
func (r *readerFlags) open(ctx context.Context) (meshReader, error) {
	named := r.given("kubeconfig") || r.given("context")
	if !named {
		client, err := laptop.NewClient(*r.name)
		if err != nil {
			return nil, err
		}
		_, err = client.Status(ctx)
		if err == nil || r.given("name") {
			return client, err
		}
		cluster, kubeErr := r.connect()
		if kubeErr != nil {
			return nil, err
		}
		if i, kubeErr := cluster.Installed(); kubeErr != nil || i.Status == "" {
			return nil, err
		}
		return cluster.Mesh(), nil
	}
	cluster, err := r.connect()
	if err != nil {
		return nil, err
	}
	return cluster.Mesh(), nil
}
