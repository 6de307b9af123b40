package install

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/culvert-mesh/culvert/cli/laptop"
)

// cleanName is the app label of the Jobs that clean nodes.
const cleanName = "culvert-clean"

// cleanNodes ends the agents and has a Job on each node take off what they have put
// there. The Jobs are made, suspended, before the agents' DaemonSet goes, because
// they are made from it: an uninstall that was cut off finds them and goes on.
func (i *Installer) cleanNodes(ctx context.Context) error {
	daemons := i.Cluster.Client.AppsV1().DaemonSets(i.Cluster.Namespace)
	agent, err := daemons.Get(ctx, agentName, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return explain("DaemonSet "+agentName, err)
	}
	if err == nil {
		if err := i.makeJobs(ctx, agent); err != nil {
			return err
		}
		background := metav1.DeletePropagationBackground
		if err := daemons.Delete(ctx, agentName, metav1.DeleteOptions{PropagationPolicy: &background}); err != nil && !apierrors.IsNotFound(err) {
			return explain("DaemonSet "+agentName, err)
		}
	}
	if err := i.podsGone(ctx, agentName); err != nil {
		return err
	}
	return i.runJobs(ctx)
}

// makeJobs makes a suspended Job for each node that has an agent.
func (i *Installer) makeJobs(ctx context.Context, agent *appsv1.DaemonSet) error {
	pods, err := i.Cluster.Client.CoreV1().Pods(i.Cluster.Namespace).List(ctx, metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(agent.Spec.Selector)})
	if err != nil {
		return explain("list agents", err)
	}
	for _, p := range pods.Items {
		if p.Spec.NodeName == "" {
			continue
		}
		job := cleanJob(agent, p.Spec.NodeName)
		if image := imageThere(pods.Items, p); image != "" {
			job.Spec.Template.Spec.Containers[0].Image = image
		}
		_, err := i.Cluster.Client.BatchV1().Jobs(i.Cluster.Namespace).Create(ctx, job, metav1.CreateOptions{})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			return explain("Job for node "+p.Spec.NodeName, err)
		}
	}
	return nil
}

// imageThere is an image that is known to start: of the node's agent, or else of any.
// The DaemonSet's own may be one of an upgrade that has failed.
func imageThere(agents []corev1.Pod, here corev1.Pod) string {
	for _, p := range append([]corev1.Pod{here}, agents...) {
		if podReady(p) && len(p.Spec.Containers) > 0 {
			return p.Spec.Containers[0].Image
		}
	}
	return ""
}

// cleanJob is the agent's pod once more, on one node, told to take everything off it.
func cleanJob(agent *appsv1.DaemonSet, node string) *batchv1.Job {
	labels := map[string]string{"app": cleanName, "culvert-node": node}
	template := *agent.Spec.Template.DeepCopy()
	template.ObjectMeta = metav1.ObjectMeta{Labels: labels}
	spec := &template.Spec
	spec.NodeName, spec.RestartPolicy, spec.Affinity, spec.NodeSelector = node, corev1.RestartPolicyNever, nil, nil
	spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
	spec.Containers = spec.Containers[:1]
	c := &spec.Containers[0]
	c.Args = append(c.Args, "--uninstall")
	c.LivenessProbe, c.ReadinessProbe, c.StartupProbe, c.Lifecycle, c.Ports = nil, nil, nil, nil, nil
	suspended, retries := true, int32(2)
	return &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Name: jobName(node), Labels: labels},
		Spec:       batchv1.JobSpec{Suspend: &suspended, BackoffLimit: &retries, Template: template},
	}
}

// jobName fits into what a Job's pods may be called.
func jobName(node string) string {
	name := cleanName + "-" + strings.ReplaceAll(node, ".", "-")
	return strings.TrimRight(name[:min(len(name), 57)], "-")
}

// runJobs lets the Jobs run, and waits until each node is clean.
func (i *Installer) runJobs(ctx context.Context) error {
	api := i.Cluster.Client.BatchV1().Jobs(i.Cluster.Namespace)
	jobs, err := api.List(ctx, metav1.ListOptions{LabelSelector: "app=" + cleanName})
	if err != nil {
		return explain("list Jobs", err)
	}
	for _, j := range jobs.Items {
		if _, err := api.Patch(ctx, j.Name, types.MergePatchType, []byte(`{"spec":{"suspend":false}}`), metav1.PatchOptions{}); err != nil {
			return explain("Job "+j.Name, err)
		}
	}
	if err := i.jobsDone(ctx, len(jobs.Items)); err != nil {
		if !i.Force {
			return err
		}
		i.say("! %v; going on, because of --force", err)
	}
	background := metav1.DeletePropagationBackground
	for _, j := range jobs.Items {
		if err := api.Delete(ctx, j.Name, metav1.DeleteOptions{PropagationPolicy: &background}); err != nil && !apierrors.IsNotFound(err) {
			return explain("Job "+j.Name, err)
		}
	}
	return i.podsGone(ctx, cleanName)
}

// jobsDone waits for n Jobs, and says of each node that it is clean.
func (i *Installer) jobsDone(ctx context.Context, n int) error {
	ctx, cancel := context.WithTimeout(ctx, i.Timeout/2) // the rest needs time as well
	defer cancel()
	said, failed := map[string]bool{}, []string{}
	err := i.until(ctx, func(ctx context.Context) (bool, error) {
		jobs, err := i.Cluster.Client.BatchV1().Jobs(i.Cluster.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=" + cleanName})
		if err != nil {
			return false, err
		}
		for _, j := range jobs.Items {
			node := j.Labels["culvert-node"]
			switch {
			case said[node]:
			case j.Status.Succeeded > 0:
				said[node] = true
				i.say("node %s is clean%s", node, i.jobLog(ctx, node))
			case jobFailed(j):
				said[node] = true
				failed = append(failed, node+i.jobLog(ctx, node))
			}
		}
		return len(said) >= n, nil
	})
	if len(failed) > 0 {
		return laptop.WithHint(fmt.Errorf("nodes are not clean: %s", strings.Join(failed, "; ")), "mend that and run culvert uninstall once more, or with --force to leave them as they are")
	}
	if err != nil {
		return laptop.WithHint(errors.New("not every node has been cleaned"), "kubectl get nodes, kubectl get pods -n %s -l app=%s; then culvert uninstall once more, or with --force to leave the node as it is", i.Cluster.Namespace, cleanName)
	}
	return nil
}

func jobFailed(j batchv1.Job) bool {
	return slices.ContainsFunc(j.Status.Conditions, func(c batchv1.JobCondition) bool {
		return c.Type == batchv1.JobFailed && c.Status == corev1.ConditionTrue
	})
}

// jobLog is what a Job's newest pod wrote, in one line.
func (i *Installer) jobLog(ctx context.Context, node string) string {
	pods, err := i.Cluster.Client.CoreV1().Pods(i.Cluster.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=" + cleanName + ",culvert-node=" + node})
	if err != nil || len(pods.Items) == 0 {
		return ""
	}
	newest := slices.MaxFunc(pods.Items, func(a, b corev1.Pod) int {
		return cmp.Compare(a.CreationTimestamp.UnixNano(), b.CreationTimestamp.UnixNano())
	})
	stream, err := i.Cluster.Client.CoreV1().Pods(i.Cluster.Namespace).GetLogs(newest.Name, &corev1.PodLogOptions{}).Stream(ctx)
	if err != nil {
		return ""
	}
	defer stream.Close()
	var lines []string
	for s := bufio.NewScanner(stream); s.Scan(); {
		lines = append(lines, strings.TrimSpace(s.Text()))
	}
	if len(lines) == 0 {
		return ""
	}
	return ": " + strings.Join(lines, "; ")
}
