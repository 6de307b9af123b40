package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"
)

const (
	namespaces    = 10
	meshNamespace = "bench-mesh"
	policyName    = "bench"
)

var (
	definitions = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	policies    = schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: "authorizationpolicies"}
)

// cluster is the objects of a cluster that nobody runs.
type cluster struct {
	o    options
	kube kubernetes.Interface
	dyn  dynamic.Interface
	bare metadata.Interface

	turn atomic.Int64 // so that every patch changes something
}

func newCluster(config *rest.Config, o options) (*cluster, error) {
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	dyn, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	bare, err := metadata.NewForConfig(config)
	c := &cluster{o: o, kube: kube, dyn: dyn, bare: bare}
	c.turn.Store(time.Now().UnixMilli()) // unlike that of a former run
	return c, err
}

func namespaceOf(i int) string { return fmt.Sprintf("bench-%d", i%namespaces) }
func nodeName(i int) string    { return fmt.Sprintf("bench-node-%d", i) }

// podName is the i-th pod's; its service's number decides its namespace.
func (c *cluster) podName(i int) (namespace, name string) {
	return namespaceOf(i % c.o.services), fmt.Sprintf("app-%d-7d4f9c6b8d-%05d", i%c.o.services, i)
}

// each calls f for 0 … n-1, several at a time.
func each(n int, f func(i int) error) error {
	var wg sync.WaitGroup
	var next atomic.Int64
	errs := make([]error, 24)
	for w := range errs {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n && errs[w] == nil; i = int(next.Add(1)) - 1 {
				errs[w] = f(i)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// there turns an error about what exists already into none.
func there(err error) error {
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// fill makes everything but what exists already.
func (c *cluster) fill(ctx context.Context) error {
	if err := c.define(ctx); err != nil {
		return err
	}
	names := []string{meshNamespace}
	for i := range namespaces {
		names = append(names, namespaceOf(i))
	}
	for _, ns := range names {
		_, err := c.kube.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}}, metav1.CreateOptions{})
		if there(err) != nil {
			return err
		}
		for _, account := range []string{"default", "ztunnel"} {
			_, err := c.kube.CoreV1().ServiceAccounts(ns).Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: account}}, metav1.CreateOptions{})
			if there(err) != nil {
				return err
			}
		}
	}
	if err := each(c.o.nodes, func(i int) error { return c.node(ctx, i) }); err != nil {
		return err
	}
	if err := each(c.o.services, func(i int) error { return c.service(ctx, i) }); err != nil {
		return err
	}
	exist, err := c.existing(ctx)
	if err != nil {
		return err
	}
	if err := each(c.o.pods, func(i int) error {
		if ns, name := c.podName(i); exist[ns+"/"+name] {
			return nil
		}
		return c.pod(ctx, i)
	}); err != nil {
		return err
	}
	return c.policy(ctx)
}

// define applies the custom resource definitions.
func (c *cluster) define(ctx context.Context) error {
	files, err := filepath.Glob(filepath.Join(c.o.crds, "*.yaml"))
	if err != nil {
		return err
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		var u unstructured.Unstructured
		if err := yaml.Unmarshal(text, &u.Object); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		if _, err := c.dyn.Resource(definitions).Create(ctx, &u, metav1.CreateOptions{}); there(err) != nil {
			return err
		}
	}
	return nil
}

func (c *cluster) node(ctx context.Context, i int) error {
	_, err := c.kube.CoreV1().Nodes().Create(ctx, &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: nodeName(i), Labels: map[string]string{"topology.kubernetes.io/region": "r", "topology.kubernetes.io/zone": fmt.Sprint("z", i%3)}},
		Spec:       corev1.NodeSpec{Unschedulable: true},
	}, metav1.CreateOptions{})
	if there(err) != nil {
		return err
	}
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: nodeName(i)}, Spec: coordinationv1.LeaseSpec{RenewTime: &metav1.MicroTime{Time: time.Now()}}}
	if _, err := c.kube.CoordinationV1().Leases("kube-node-lease").Create(ctx, lease, metav1.CreateOptions{}); there(err) != nil {
		return err
	}
	ready := `{"status": {"conditions": [{"type": "Ready", "status": "True", "reason": "Bench"}]}}`
	_, err = c.kube.CoreV1().Nodes().Patch(ctx, nodeName(i), types.StrategicMergePatchType, []byte(ready), metav1.PatchOptions{}, "status")
	return err
}

// heartbeat keeps the nodes from being judged dead, and their pods with them.
func (c *cluster) heartbeat(ctx context.Context) {
	tick := time.NewTicker(15 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		patch := fmt.Appendf(nil, `{"spec": {"renewTime": %q}}`, time.Now().UTC().Format("2006-01-02T15:04:05.000000Z"))
		for i := range c.o.nodes {
			_, _ = c.kube.CoordinationV1().Leases("kube-node-lease").Patch(ctx, nodeName(i), types.MergePatchType, patch, metav1.PatchOptions{})
		}
	}
}

func (c *cluster) service(ctx context.Context, i int) error {
	_, err := c.kube.CoreV1().Services(namespaceOf(i)).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("app-", i)},
		Spec:       corev1.ServiceSpec{Selector: map[string]string{"app": fmt.Sprint("app-", i)}, Ports: []corev1.ServicePort{{Name: "http", Port: 80}}},
	}, metav1.CreateOptions{})
	return there(err)
}

func (c *cluster) pod(ctx context.Context, i int) error {
	ns, name := c.podName(i)
	s := i % c.o.services
	_, err := c.kube.CoreV1().Pods(ns).Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": fmt.Sprint("app-", s), "pod-template-hash": "7d4f9c6b8d", "version": "v1"},
			Annotations: map[string]string{"ambient.istio.io/redirection": "enabled"}},
		Spec: corev1.PodSpec{NodeName: nodeName(i % c.o.nodes), Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
			Containers: []corev1.Container{{Name: "app", Image: "bench", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 80}},
				Env: []corev1.EnvVar{{Name: "A", Value: "a value as programs have them"}}}}},
	}, metav1.CreateOptions{})
	if err != nil {
		return there(err)
	}
	return c.run(ctx, i)
}

// existing returns the pods that a former run has left.
func (c *cluster) existing(ctx context.Context) (map[string]bool, error) {
	out := map[string]bool{}
	for i := range namespaces {
		list, err := c.kube.CoreV1().Pods(namespaceOf(i)).List(ctx, metav1.ListOptions{})
		if err != nil {
			return nil, err
		}
		for _, p := range list.Items {
			out[p.Namespace+"/"+p.Name] = true
		}
	}
	return out, nil
}

// run says what a kubelet would say once the pod runs.
func (c *cluster) run(ctx context.Context, i int) error {
	ns, name := c.podName(i)
	patch := fmt.Appendf(nil, `{"status": {"phase": "Running", "podIP": "10.%d.%d.%d", "podIPs": [{"ip": "10.%[1]d.%[2]d.%[3]d"}], "conditions": [{"type": "Ready", "status": "True"}]}}`,
		100+i/62_500, i/250%250, i%250+1)
	_, err := c.kube.CoreV1().Pods(ns).Patch(ctx, name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	return err
}

// policy makes the policy that is changed later. Its kind may be a moment old.
func (c *cluster) policy(ctx context.Context) error {
	u := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": map[string]any{"name": policyName},
		"spec": map[string]any{"selector": map[string]any{"matchLabels": map[string]any{"version": "v1"}}, "action": "DENY",
			"rules": []any{map[string]any{"from": []any{map[string]any{"source": map[string]any{"namespaces": []any{"nowhere"}}}}}}},
	}}
	deadline := time.Now().Add(20 * time.Second)
	for {
		_, err := c.dyn.Resource(policies).Namespace(namespaceOf(0)).Create(ctx, u, metav1.CreateOptions{})
		if there(err) == nil || time.Now().After(deadline) || ctx.Err() != nil {
			return there(err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// changePolicy gives the policy a rule that it has not had. It returns the policy's
// new version.
func (c *cluster) changePolicy(ctx context.Context) (version string, err error) {
	patch := fmt.Appendf(nil, `{"spec": {"rules": [{"from": [{"source": {"namespaces": ["nowhere-%d"]}}]}]}}`, c.turn.Add(1))
	u, err := c.dyn.Resource(policies).Namespace(namespaceOf(0)).Patch(ctx, policyName, types.MergePatchType, patch, metav1.PatchOptions{})
	if err != nil {
		return "", err
	}
	return u.GetResourceVersion(), nil
}

// revise gives a pod a revision that it has not had. It returns the pod's new
// version.
func (c *cluster) revise(ctx context.Context, i int) (version string, err error) {
	ns, name := c.podName(i)
	patch := fmt.Appendf(nil, `{"metadata": {"labels": {"service.istio.io/canonical-revision": "r%d"}}}`, c.turn.Add(1))
	p, err := c.kube.CoreV1().Pods(ns).Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{})
	if err != nil {
		return "", err
	}
	return p.ResourceVersion, nil
}

// churn changes pods at the rate asked for, until ctx ends and the last of them has
// changed. The first pods are left alone: they are measured.
func (c *cluster) churn(ctx context.Context) {
	var under sync.WaitGroup
	defer under.Wait()
	tick := time.NewTicker(time.Second / time.Duration(c.o.churn))
	defer tick.Stop()
	slots := make(chan struct{}, 32)
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		slots <- struct{}{}
		under.Go(func() {
			defer func() { <-slots }()
			i := c.o.pods/2 + rand.IntN(c.o.pods/2)
			_, _ = c.revise(context.WithoutCancel(ctx), i)
		})
	}
}

// token is a ztunnel's.
func (c *cluster) token(ctx context.Context) (string, error) {
	r, err := c.kube.CoreV1().ServiceAccounts(meshNamespace).CreateToken(ctx, "ztunnel",
		&authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: []string{"istio-ca"}}}, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	return r.Status.Token, nil
}

// remove deletes what fill has made, but for the definitions.
func (c *cluster) remove() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	now := metav1.DeleteOptions{GracePeriodSeconds: new(int64)}
	for i := range namespaces {
		_ = c.kube.CoreV1().Pods(namespaceOf(i)).DeleteCollection(ctx, now, metav1.ListOptions{})
		_ = c.kube.CoreV1().Namespaces().Delete(ctx, namespaceOf(i), metav1.DeleteOptions{})
	}
	_ = c.kube.CoreV1().Namespaces().Delete(ctx, meshNamespace, metav1.DeleteOptions{})
	for i := range c.o.nodes {
		_ = c.kube.CoreV1().Nodes().Delete(ctx, nodeName(i), metav1.DeleteOptions{})
		_ = c.kube.CoordinationV1().Leases("kube-node-lease").Delete(ctx, nodeName(i), metav1.DeleteOptions{})
	}
}
