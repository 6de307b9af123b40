package install

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/culvert-mesh/culvert/cli/laptop"
)

// Workload is a DaemonSet or a Deployment, by name.
type Workload struct{ Kind, Namespace, Name string }

func (w Workload) String() string { return strings.ToLower(w.Kind) + " " + w.Name }

// workloadsOf are those of a manifest, in its order.
func workloadsOf(manifest, namespace string) (all []Workload) {
	for _, doc := range documents(manifest) {
		var o struct {
			Kind     string            `json:"kind"`
			Metadata metav1.ObjectMeta `json:"metadata"`
		}
		if yaml.Unmarshal([]byte(doc), &o) != nil || (o.Kind != "DaemonSet" && o.Kind != "Deployment") {
			continue
		}
		all = append(all, Workload{o.Kind, cmp.Or(o.Metadata.Namespace, namespace), o.Metadata.Name})
	}
	return all
}

// Observed is what is known of a workload at one moment.
type Observed struct {
	Workload
	Missing bool
	Current bool // the controller has seen the newest version of it
	Want    int32
	Updated int32
	Ready   int32
	Newest  string // of a DaemonSet: label controller-revision-hash of its newest version
	Pods    []corev1.Pod
	Events  []corev1.Event // of it and of its pods
}

// Progress is what a person is told of a workload.
type Progress struct {
	Ready   bool
	Text    string   // such as "1 of 2 ready"
	Reasons []string // why not, a line per pod or event
}

// Judge says how far a workload has come, and why no further.
func Judge(o Observed) Progress {
	o.countNewest()
	switch {
	case o.Missing:
		return Progress{Text: "is not there"}
	case !o.Current:
		return Progress{Text: "not yet seen by its controller", Reasons: creationFailures(o.Events)}
	case o.Want == 0 && o.Kind == "DaemonSet":
		return Progress{Text: "fits no node", Reasons: []string{"no node matches its node selector"}}
	case o.Ready >= o.Want && o.Updated >= o.Want:
		return Progress{Ready: true, Text: fmt.Sprintf("ready (%d)", o.Ready)}
	}
	p := Progress{Text: fmt.Sprintf("%d of %d ready", min(o.Ready, o.Want), o.Want)}
	if o.Updated < o.Want {
		p.Text += fmt.Sprintf(", %d of the new version", o.Updated)
	}
	for _, pod := range o.Pods {
		if why := podTrouble(pod, o.Events); why != "" {
			p.Reasons = append(p.Reasons, fmt.Sprintf("pod %s%s: %s", pod.Name, onNode(pod), why))
		}
	}
	if len(o.Pods) == 0 {
		p.Reasons = append(p.Reasons, creationFailures(o.Events)...)
	}
	slices.Sort(p.Reasons)
	return p
}

// countNewest counts the nodes on which the newest version of a DaemonSet is ready. The
// DaemonSet's own status goes by the oldest pod of each node, and an old ztunnel stays,
// ending, for as long as it has connections.
func (o *Observed) countNewest() {
	if o.Newest == "" {
		return
	}
	nodes := map[string]bool{} // of ready pods
	for _, p := range o.Pods {
		if p.Labels[appsv1.ControllerRevisionHashLabelKey] == o.Newest && p.DeletionTimestamp == nil {
			nodes[p.Spec.NodeName] = nodes[p.Spec.NodeName] || podReady(p)
		}
	}
	o.Updated, o.Ready = int32(len(nodes)), 0
	for _, ready := range nodes {
		if ready {
			o.Ready++
		}
	}
}

func onNode(p corev1.Pod) string {
	if p.Spec.NodeName == "" {
		return ""
	}
	return " on " + p.Spec.NodeName
}

// podTrouble says why a pod is not ready: "" when it is, or is about to be gone.
func podTrouble(p corev1.Pod, events []corev1.Event) string {
	if p.DeletionTimestamp != nil || podReady(p) {
		return ""
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			return "not scheduled: " + c.Message
		}
	}
	for _, s := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		if w := s.State.Waiting; w != nil && w.Reason != "" && w.Reason != "ContainerCreating" && w.Reason != "PodInitializing" {
			return strings.TrimSuffix(fmt.Sprintf("%s: %s%s", w.Reason, w.Message, lastExit(s)), ": ")
		}
		if t := s.State.Terminated; t != nil && t.ExitCode != 0 {
			return fmt.Sprintf("container %s ended with status %d: %s", s.Name, t.ExitCode, cmp.Or(t.Message, t.Reason))
		}
	}
	if e := newestWarning(p.Name, events); e != "" {
		return e
	}
	for _, s := range p.Status.ContainerStatuses {
		if s.State.Running != nil && !s.Ready {
			return fmt.Sprintf("container %s runs and is not ready", s.Name)
		}
	}
	return "starting"
}

func lastExit(s corev1.ContainerStatus) string {
	t := s.LastTerminationState.Terminated
	if t == nil {
		return ""
	}
	return strings.TrimSpace(fmt.Sprintf(" (last: status %d %s)", t.ExitCode, strings.TrimSpace(cmp.Or(t.Message, t.Reason))))
}

// newestWarning is the latest warning about a pod, as one line.
func newestWarning(pod string, events []corev1.Event) string {
	var newest *corev1.Event
	for n, e := range events {
		if e.InvolvedObject.Name == pod && e.Type == corev1.EventTypeWarning && (newest == nil || eventTime(*newest).Before(eventTime(e))) {
			newest = &events[n]
		}
	}
	if newest == nil {
		return ""
	}
	return newest.Reason + ": " + strings.Join(strings.Fields(newest.Message), " ")
}

func eventTime(e corev1.Event) time.Time {
	if !e.LastTimestamp.IsZero() {
		return e.LastTimestamp.Time
	}
	return e.EventTime.Time
}

// eventsOf are those of a workload and of what is made for it, whose names begin with its own.
func eventsOf(namespace, name string, events []corev1.Event) (of []corev1.Event) {
	for _, e := range events {
		if n := e.InvolvedObject.Name; e.Namespace == namespace && (n == name || strings.HasPrefix(n, name+"-")) {
			of = append(of, e)
		}
	}
	return of
}

// creationFailures say why a controller makes no pods. What is said of pods is of
// earlier ones.
func creationFailures(events []corev1.Event) (list []string) {
	for _, e := range events {
		if e.Type == corev1.EventTypeWarning && e.InvolvedObject.Kind != "Pod" {
			list = append(list, e.Reason+": "+strings.Join(strings.Fields(e.Message), " "))
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

func podReady(p corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// waitPeriod is how often workloads are looked at while they are waited for.
const waitPeriod = 500 * time.Millisecond

// WaitReady waits until workloads are ready, and writes a line whenever one has come
// further. The error names each one that is not ready, and why.
func (c *Cluster) WaitReady(ctx context.Context, all []Workload, timeout time.Duration, out io.Writer) error {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("not ready after %s", timeout))
	defer cancel()
	said := map[Workload]map[string]bool{} // a reason that comes and goes is said once
	tick := time.NewTicker(waitPeriod)
	defer tick.Stop()
	var late []Progress
	var names []string
	for {
		var err error
		var pending []Progress
		var waiting []string
		for _, w := range all {
			o, e := c.observe(ctx, w)
			if e != nil {
				err = e
				break
			}
			p := Judge(o)
			line := p.line()
			if key := line[:min(len(line), 100)]; !said[w][key] { // what follows has port numbers and the like
				if said[w] == nil || p.Ready {
					said[w] = map[string]bool{}
				}
				said[w][key] = true
				fmt.Fprintf(out, "  %-36s %s\n", w, line)
			}
			if !p.Ready {
				pending, waiting = append(pending, p), append(waiting, w.String())
			}
		}
		if err == nil {
			if late, names = pending, waiting; len(late) == 0 {
				return nil
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return notReady(context.Cause(ctx), names, late, err)
		}
	}
}

// line is a progress in one line: the first reason stands for the others.
func (p Progress) line() string {
	if p.Ready || len(p.Reasons) == 0 {
		return p.Text
	}
	return p.Text + ": " + p.Reasons[0]
}

func notReady(cause error, names []string, late []Progress, err error) error {
	if len(late) == 0 {
		return fmt.Errorf("%w: %w", cause, cmp.Or(err, context.DeadlineExceeded))
	}
	var b strings.Builder
	var reasons []string
	for n, p := range late {
		fmt.Fprintf(&b, "\n  %s: %s", names[n], p.Text)
		for _, r := range p.Reasons {
			fmt.Fprintf(&b, "\n    %s", r)
		}
		reasons = append(reasons, p.Reasons...)
	}
	return laptop.WithHint(fmt.Errorf("%w:%s", cause, b.String()), "%s", remedy(reasons))
}

// remedies are what to do about what stops pods, by a word of the reason.
var remedies = []struct{ word, fix string }{
	{"ImagePull", "the nodes must be able to pull the images: --set global.hub=HUB --set global.tag=TAG, --set global.imagePullSecrets, or import the images on every node"},
	{"ErrImageNeverPull", "the image is not on the node: import it there, or change global.imagePullPolicy"},
	{"violates PodSecurity", "the mesh's namespace must allow privileged pods: kubectl label namespace NAMESPACE pod-security.kubernetes.io/enforce=privileged"},
	{"Insufficient", "the nodes have no room for it: lower the resources of its chart's values, or add nodes"},
	{"untolerated taint", "a node's taint keeps it away: add a toleration in its chart's values"},
	{"is forbidden", "a quota or an admission policy refuses the pods: the reason names it"},
	{"failed to find plugin", "the node's CNI folders are elsewhere: --platform NAME, or --set cni.cniBinDir and cni.cniConfDir"},
	{"hostPath", "a folder of the node is elsewhere or read-only: --platform NAME, or the folders in the values of chart cni"},
	{"read-only file system", "a folder of the node is read-only: --set cni.cniBinDir or cni.cniConfDir to one that is not, or --platform NAME"},
	{trustBundle, "the control plane writes it into every namespace as soon as a replica leads: is it ready?"},
	{"cni plugin not initialized", "the node has no CNI configuration yet: install the cluster's CNI plugin first; where it keeps its configuration elsewhere, --platform NAME or --set cni.cniConfDir"},
	{"probe failed with statuscode", "it runs and is not ready: kubectl logs -n NAMESPACE POD says why; if something is forbidden there, its roles were changed, and culvert upgrade puts them back"},
	{"CrashLoopBackOff", "the program ends as soon as it starts: kubectl logs -n NAMESPACE POD --previous says why"},
}

// remedy is the fix for the first reason that has one.
func remedy(reasons []string) string {
	for _, r := range remedies {
		for _, reason := range reasons {
			if strings.Contains(reason, r.word) {
				return r.fix
			}
		}
	}
	return "culvert check says what is wrong; kubectl describe pod and kubectl logs say more"
}

// readWorkload puts a workload into o, and returns which pods are its own.
func (c *Cluster) readWorkload(ctx context.Context, w Workload, o *Observed) (*metav1.LabelSelector, error) {
	apps := c.Client.AppsV1()
	if w.Kind == "DaemonSet" {
		d, err := apps.DaemonSets(w.Namespace).Get(ctx, w.Name, metav1.GetOptions{})
		if err != nil {
			return nil, err
		}
		o.fromDaemonSet(d)
		return d.Spec.Selector, nil
	}
	d, err := apps.Deployments(w.Namespace).Get(ctx, w.Name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	o.fromDeployment(d)
	return d.Spec.Selector, nil
}

// observe reads a workload, and its pods and events when it is not ready.
func (c *Cluster) observe(ctx context.Context, w Workload) (Observed, error) {
	o := Observed{Workload: w}
	selector, err := c.readWorkload(ctx, w, &o)
	if apierrors.IsNotFound(err) {
		o.Missing = true
		return o, nil
	}
	if err != nil {
		return o, err
	}
	if Judge(o).Ready {
		return o, nil
	}
	pods, err := c.Client.CoreV1().Pods(w.Namespace).List(ctx, metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(selector)})
	if err != nil {
		return o, err
	}
	o.Pods = pods.Items
	if w.Kind == "DaemonSet" {
		if o.Newest, err = c.newestVersion(ctx, w, selector); err != nil {
			return o, err
		}
	}
	events, err := c.Client.CoreV1().Events(w.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return o, err
	}
	o.Events = eventsOf(w.Namespace, w.Name, events.Items)
	return o, nil
}

// newestVersion is the hash of a DaemonSet's newest version, which its pods are
// labelled with.
func (c *Cluster) newestVersion(ctx context.Context, w Workload, selector *metav1.LabelSelector) (string, error) {
	list, err := c.Client.AppsV1().ControllerRevisions(w.Namespace).List(ctx, metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(selector)})
	if err != nil || len(list.Items) == 0 {
		return "", err
	}
	newest := slices.MaxFunc(list.Items, func(a, b appsv1.ControllerRevision) int { return cmp.Compare(a.Revision, b.Revision) })
	return newest.Labels[appsv1.ControllerRevisionHashLabelKey], nil
}

func (o *Observed) fromDaemonSet(d *appsv1.DaemonSet) {
	s := d.Status
	o.Current, o.Want, o.Updated, o.Ready = s.ObservedGeneration >= d.Generation, s.DesiredNumberScheduled, s.UpdatedNumberScheduled, s.NumberReady
}

func (o *Observed) fromDeployment(d *appsv1.Deployment) {
	s := d.Status
	o.Current, o.Want, o.Updated, o.Ready = s.ObservedGeneration >= d.Generation, 1, s.UpdatedReplicas, s.AvailableReplicas
	if d.Spec.Replicas != nil {
		o.Want = *d.Spec.Replicas
	}
	if s.Replicas > s.UpdatedReplicas { // pods of the old version are still there
		o.Updated = min(o.Updated, o.Want-1)
	}
}
