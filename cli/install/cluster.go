// Package install puts the mesh on a Kubernetes cluster, keeps it up to date, takes
// it off again, and says what is wrong with it.
//
//	charts (embedded) + values ──▶ Helm ──▶ API server ──▶ wait, with reasons
//	API server ──▶ collect ──▶ Facts ──▶ Check (pure) ──▶ []Result, each with its fix
//
// What Helm applied is one release in the mesh's namespace, so that `helm list` and
// `helm upgrade` work on it as well. Waiting is done here rather than by Helm,
// because Helm does not say what it waits for.
//
// A Cluster may be used by many goroutines at once, but for its release: one
// operation at a time, which the release's own state guards between processes too.
package install

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/culvert-mesh/culvert/cli/laptop"
)

// DefaultNamespace is where the mesh is installed when nothing else is said.
const DefaultNamespace = "culvert-system"

// Target says which cluster is meant, as kubectl does.
type Target struct {
	Kubeconfig string // path; empty: $KUBECONFIG, ~/.kube/config, or a pod's own account
	Context    string // empty: the current one
	Namespace  string // of the mesh; empty: DefaultNamespace
}

// Cluster is a cluster that is talked to.
type Cluster struct {
	Namespace string // of the mesh
	Config    *rest.Config
	Client    kubernetes.Interface
	Dynamic   dynamic.Interface

	raw    clientcmd.ClientConfig
	cached discovery.CachedDiscoveryInterface
	mapper *restmapper.DeferredDiscoveryRESTMapper
}

// Connect reads the configuration and asks the API server for its version, so that
// a wrong address or an expired certificate is found before anything is done.
func Connect(t Target) (*Cluster, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = t.Kubeconfig
	raw := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: t.Context})
	c := &Cluster{Namespace: t.Namespace, raw: raw}
	if c.Namespace == "" {
		c.Namespace = DefaultNamespace
	}
	var err error
	if c.Config, err = raw.ClientConfig(); err != nil {
		return nil, noCluster(err)
	}
	// A person waits for the answers, and a check asks for many things at once.
	c.Config.QPS, c.Config.Burst = 50, 100
	c.Config.UserAgent = "culvert"
	c.Config.WarningHandler = rest.NoWarnings{}
	if c.Client, err = kubernetes.NewForConfig(c.Config); err != nil {
		return nil, noCluster(err)
	}
	if c.Dynamic, err = dynamic.NewForConfig(c.Config); err != nil {
		return nil, noCluster(err)
	}
	short := rest.CopyConfig(c.Config)
	short.Timeout = 10 * time.Second
	d, err := discovery.NewDiscoveryClientForConfig(short)
	if err != nil {
		return nil, noCluster(err)
	}
	if _, err := d.ServerVersion(); err != nil {
		return nil, noCluster(fmt.Errorf("%s does not answer: %w", c.Config.Host, err))
	}
	c.cached = memory.NewMemCacheClient(d)
	c.mapper = restmapper.NewDeferredDiscoveryRESTMapper(c.cached)
	return c, nil
}

// noCluster says what a person can do about a cluster that is not to be had.
func noCluster(err error) error {
	var netErr net.Error
	switch {
	case clientcmd.IsEmptyConfig(err):
		return laptop.WithHint(errors.New("no cluster: there is no kubeconfig"), "give --kubeconfig FILE or set $KUBECONFIG; kubectl config view shows what there is")
	case errors.Is(err, os.ErrNotExist):
		return laptop.WithHint(fmt.Errorf("no cluster: %w", err), "--kubeconfig and $KUBECONFIG name files that must exist")
	case clientcmd.IsContextNotFound(err), strings.HasPrefix(err.Error(), "context ") && strings.HasSuffix(err.Error(), "does not exist"):
		return laptop.WithHint(fmt.Errorf("no cluster: %w", err), "kubectl config get-contexts lists the contexts")
	case apierrors.IsUnauthorized(err):
		return laptop.WithHint(fmt.Errorf("no cluster: %w", err), "the credentials of the kubeconfig are not valid (any more): log in again")
	case errors.As(err, &netErr):
		return laptop.WithHint(fmt.Errorf("no cluster: %w", err), "is the cluster running, and is it the one you mean? kubectl config current-context says which")
	}
	return laptop.WithHint(fmt.Errorf("no cluster: %w", err), "kubectl cluster-info shows whether the API server can be reached")
}

// ToRESTConfig and the three below are how Helm asks for its clients.
func (c *Cluster) ToRESTConfig() (*rest.Config, error) { return rest.CopyConfig(c.Config), nil }

// ToDiscoveryClient returns what the API server can do, remembered.
func (c *Cluster) ToDiscoveryClient() (discovery.CachedDiscoveryInterface, error) {
	return c.cached, nil
}

// ToRESTMapper returns the mapping of kinds to resources.
func (c *Cluster) ToRESTMapper() (meta.RESTMapper, error) { return c.mapper, nil }

// ToRawKubeConfigLoader returns the configuration, in the mesh's namespace.
func (c *Cluster) ToRawKubeConfigLoader() clientcmd.ClientConfig {
	return inNamespace{c.raw, c.Namespace}
}

type clientConfig = clientcmd.ClientConfig

// inNamespace is a configuration whose namespace is the mesh's.
type inNamespace struct {
	clientConfig
	namespace string
}

func (n inNamespace) Namespace() (string, bool, error) { return n.namespace, true, nil }
