package install

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/kube"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/culvert-mesh/culvert/cli/laptop"
)

// Names of what the mesh's programs make beside the chart.
const (
	agentName    = "culvert-cni"
	proxyName    = "ztunnel"
	controlName  = "culvert-controlplane"
	leaseName    = "culvert-controlplane"
	selfMadeCA   = "istio-ca-secret"
	pluggedCA    = "cacerts"
	trustBundle  = "istio-ca-root-cert"
	redirection  = "ambient.istio.io/redirection"
	managedLabel = "gateway.istio.io/managed"
)

// proxyGrace is how long a ztunnel may take to end, when the mesh goes.
const proxyGrace = 10 * time.Second

// Uninstall takes the mesh off a cluster:
//
//	agents end ──▶ each node is cleaned by a Job ──▶ pods lose their annotation, nodes their condition
//	──▶ Helm takes the rest away ──▶ ztunnels end ──▶ what the programs made beside the chart
//
// Traffic goes on in the clear as soon as a node is clean; connections through a
// tunnel break when its ztunnel ends. Objects that users wrote stay, and so do their
// definitions unless purge, which deletes both.
func (i *Installer) Uninstall(ctx context.Context, purge bool) error {
	found, err := i.Cluster.Installed()
	if err != nil {
		return err
	}
	if found.Status == "" {
		i.say("no release in namespace %s; removing what may be left", i.Cluster.Namespace)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, i.Timeout, fmt.Errorf("not done after %s", i.Timeout))
	defer cancel()
	steps := []func(context.Context) error{
		i.cleanNodes,
		i.forgetPods,
		i.forgetNodes,
		i.removeRelease,
		i.endProxies,
		i.removeGateways,
		i.forgetStatus,
		i.removeMade,
	}
	if purge {
		steps = append(steps, i.removeCRDs)
	}
	for _, step := range append(steps, i.removeNamespace) {
		if err := step(ctx); err != nil {
			if cause := context.Cause(ctx); cause != nil {
				err = fmt.Errorf("%w: %w", cause, err)
			}
			return fmt.Errorf("uninstall: %w", err)
		}
	}
	if !purge {
		i.say("definitions of resources (CRDs) are kept, with what users wrote; culvert uninstall --purge deletes both")
	}
	i.say("nothing of the mesh is left")
	return nil
}

// forgetPods takes the agents' annotation off pods.
func (i *Installer) forgetPods(ctx context.Context) error {
	pods, err := i.Cluster.Client.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return explain("list pods", err)
	}
	patch := fmt.Appendf(nil, `{"metadata":{"annotations":{%q:null}}}`, redirection)
	n := 0
	for _, p := range pods.Items {
		if _, ok := p.Annotations[redirection]; !ok {
			continue
		}
		_, err := i.Cluster.Client.CoreV1().Pods(p.Namespace).Patch(ctx, p.Name, types.MergePatchType, patch, metav1.PatchOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return explain("pod "+p.Namespace+"/"+p.Name, err)
		}
		n++
	}
	i.removed(n, "annotation on pods", "annotations on pods")
	return nil
}

// forgetNodes takes the agents' condition off nodes. Agents do so themselves, unless
// their rights went before them, as when Helm has taken the release away.
func (i *Installer) forgetNodes(ctx context.Context) error {
	api := i.Cluster.Client.CoreV1().Nodes()
	nodes, err := api.List(ctx, metav1.ListOptions{})
	if err != nil {
		return explain("list nodes", err)
	}
	patch := fmt.Appendf(nil, `{"status":{"conditions":[{"type":%q,"$patch":"delete"}]}}`, proof)
	n := 0
	for _, node := range nodes.Items {
		if !slices.ContainsFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool { return c.Type == proof }) {
			continue
		}
		_, err := api.Patch(ctx, node.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
		if err != nil && !apierrors.IsNotFound(err) {
			return explain("node "+node.Name, err)
		}
		n++
	}
	i.removed(n, "condition of a node", "conditions of nodes")
	return nil
}

// removeRelease has Helm delete what it made.
func (i *Installer) removeRelease(ctx context.Context) error {
	cfg, err := i.helm()
	if err != nil {
		return err
	}
	run := action.NewUninstall(cfg)
	run.IgnoreNotFound, run.DeletionPropagation, run.Timeout = true, "background", i.Timeout
	run.WaitStrategy, run.WaitOptions = kube.StatusWatcherStrategy, []kube.WaitOption{kube.WithWaitContext(ctx)}
	answer, err := run.Run(releaseName)
	if err != nil {
		return explain("release", err)
	}
	if answer == nil || answer.Release == nil {
		return nil
	}
	i.say("removed release %s", releaseName)
	return nil
}

// endProxies ends the ztunnels within proxyGrace. By themselves they stay for as long as
// they have connections: up to an hour, as the charts have it.
func (i *Installer) endProxies(ctx context.Context) error {
	api := i.Cluster.Client.CoreV1().Pods(i.Cluster.Namespace)
	pods, err := api.List(ctx, metav1.ListOptions{LabelSelector: "app=" + proxyName})
	if err != nil {
		return explain("list ztunnels", err)
	}
	grace := int64(proxyGrace / time.Second)
	for _, p := range pods.Items {
		if err := api.Delete(ctx, p.Name, metav1.DeleteOptions{GracePeriodSeconds: &grace}); err != nil && !apierrors.IsNotFound(err) {
			return explain("pod "+p.Name, err)
		}
	}
	if err := i.podsGone(ctx, controlName, proxyName, agentName); err != nil {
		return err
	}
	if len(pods.Items) > 0 {
		i.say("control plane and ztunnels have ended")
	}
	return nil
}

// podsGone waits until no pod in the mesh's namespace has one of the app labels.
func (i *Installer) podsGone(ctx context.Context, apps ...string) error {
	var left []string
	err := i.until(ctx, func(ctx context.Context) (bool, error) {
		pods, err := i.Cluster.Client.CoreV1().Pods(i.Cluster.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app in (" + strings.Join(apps, ",") + ")"})
		if err != nil {
			return false, err
		}
		left = nil
		for _, p := range pods.Items {
			left = append(left, p.Name+onNode(p))
		}
		return len(left) == 0, nil
	})
	if err != nil && len(left) > 0 {
		return laptop.WithHint(fmt.Errorf("pods have not ended: %s", strings.Join(left, ", ")), "is their node up? kubectl get nodes; then culvert uninstall once more")
	}
	return err
}

// until asks again and again. An error that may pass is not the end.
func (i *Installer) until(ctx context.Context, done func(context.Context) (bool, error)) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := done(ctx)
		if ok {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		}
	}
}

// removeMade deletes what the control plane made beside the chart. The key of the
// self-made authority goes with it: a mesh that is installed again has another root.
func (i *Installer) removeMade(ctx context.Context) error {
	c := i.Cluster.Client
	var none metav1.DeleteOptions
	if err := i.remove("Lease "+leaseName, c.CoordinationV1().Leases(i.Cluster.Namespace).Delete(ctx, leaseName, none)); err != nil {
		return err
	}
	if err := i.removeCA(ctx); err != nil {
		return err
	}
	bundles, err := c.CoreV1().ConfigMaps("").List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + trustBundle})
	if err != nil {
		return explain("list trust bundles", err)
	}
	n := 0
	for _, b := range bundles.Items {
		if !writtenByUs(b.ManagedFields) {
			continue
		}
		if err := c.CoreV1().ConfigMaps(b.Namespace).Delete(ctx, b.Name, exactly(b.UID)); err != nil && !apierrors.IsNotFound(err) {
			return explain("ConfigMap "+b.Namespace+"/"+b.Name, err)
		}
		n++
	}
	i.removed(n, "trust bundle (ConfigMap "+trustBundle+")", "trust bundles (ConfigMap "+trustBundle+")")
	return nil
}

// removeCA deletes the self-made authority; another mesh's under that name, which
// ours only signed with, has no state of ours.
func (i *Installer) removeCA(ctx context.Context) error {
	secrets := i.Cluster.Client.CoreV1().Secrets(i.Cluster.Namespace)
	s, err := secrets.Get(ctx, selfMadeCA, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return explain("Secret "+selfMadeCA, err)
	case len(s.Data["authority.json"]) == 0:
		i.say("Secret %s is kept: somebody else made it", selfMadeCA)
		return nil
	}
	return i.remove("Secret "+selfMadeCA, secrets.Delete(ctx, selfMadeCA, exactly(s.UID)))
}

// exactly deletes the object that was seen, and no other that has its name by now.
func exactly(uid types.UID) metav1.DeleteOptions {
	return metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}}
}

// writtenByUs reports whether the control plane has written an object: another
// mesh's, or cert-manager's, has the same name.
func writtenByUs(fields []metav1.ManagedFieldsEntry) bool {
	return slices.ContainsFunc(fields, func(f metav1.ManagedFieldsEntry) bool { return f.Manager == controlName })
}

// remove says that something was deleted, unless it was not there.
func (i *Installer) remove(what string, err error) error {
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return explain(what, err)
	}
	i.say("removed %s", what)
	return nil
}

func (i *Installer) removed(n int, one, many string) {
	switch n {
	case 0:
	case 1:
		i.say("removed 1 %s", one)
	default:
		i.say("removed %d %s", n, many)
	}
}

// definitions are the resource that definitions of other resources are.
var definitions = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

const (
	managedBy = "app.kubernetes.io/managed-by" // marks a namespace that we made
	partOf    = "app.kubernetes.io/part-of"
	ours      = partOf + "=culvert"
)

// removeCRDs deletes the definitions that came with the charts, and with them every
// object of those kinds.
func (i *Installer) removeCRDs(ctx context.Context) error {
	api := i.Cluster.Dynamic.Resource(definitions)
	list, err := api.List(ctx, metav1.ListOptions{LabelSelector: ours})
	if err != nil {
		return explain("list definitions", err)
	}
	for _, crd := range list.Items {
		if err := i.remove("definition "+crd.GetName()+" and everything of that kind", api.Delete(ctx, crd.GetName(), metav1.DeleteOptions{})); err != nil {
			return err
		}
	}
	return i.until(ctx, func(ctx context.Context) (bool, error) {
		list, err := api.List(ctx, metav1.ListOptions{LabelSelector: ours})
		return err == nil && len(list.Items) == 0, err
	})
}

// makeNamespace makes the mesh's namespace, and marks it as made by us.
func (i *Installer) makeNamespace(ctx context.Context) error {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: i.Cluster.Namespace, Labels: map[string]string{
		managedBy: fieldManager,
		// Its programs need the node's network, folders and capabilities.
		"pod-security.kubernetes.io/enforce": "privileged",
	}}}
	_, err := i.Cluster.Client.CoreV1().Namespaces().Create(ctx, ns, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return explain("namespace "+i.Cluster.Namespace, err)
	}
	return nil
}

// removeNamespace deletes the mesh's namespace if we made it and nobody else has put
// anything of value into it.
func (i *Installer) removeNamespace(ctx context.Context) error {
	api := i.Cluster.Client.CoreV1().Namespaces()
	ns, err := api.Get(ctx, i.Cluster.Namespace, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	} else if err != nil {
		return explain("namespace", err)
	}
	if ns.Labels[managedBy] != fieldManager {
		i.say("namespace %s is kept: it was there before the mesh", ns.Name)
		return nil
	}
	others, err := i.foreign(ctx)
	if err != nil {
		return err
	}
	if len(others) > 0 {
		i.say("namespace %s is kept, because of %s", ns.Name, strings.Join(others, ", "))
		return nil
	}
	if err := i.remove("namespace "+ns.Name, api.Delete(ctx, ns.Name, metav1.DeleteOptions{})); err != nil {
		return err
	}
	return i.until(ctx, func(ctx context.Context) (bool, error) {
		_, err := api.Get(ctx, ns.Name, metav1.GetOptions{})
		return apierrors.IsNotFound(err), err
	})
}

// foreign are the objects in the mesh's namespace that the mesh did not make.
func (i *Installer) foreign(ctx context.Context) (others []string, err error) {
	c := i.Cluster.Client.CoreV1()
	pods, err := c.Pods(i.Cluster.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	for _, p := range pods.Items {
		if p.DeletionTimestamp == nil {
			others = append(others, "Pod "+p.Name)
		}
	}
	secrets, err := c.Secrets(i.Cluster.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	for _, s := range secrets.Items {
		if s.Type != corev1.SecretTypeServiceAccountToken && s.Type != "helm.sh/release.v1" {
			others = append(others, "Secret "+s.Name)
		}
	}
	maps, err := c.ConfigMaps(i.Cluster.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	for _, m := range maps.Items {
		if m.Name != "kube-root-ca.crt" && m.Name != trustBundle {
			others = append(others, "ConfigMap "+m.Name)
		}
	}
	slices.Sort(others)
	return others, nil
}
