package install

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/culvert-mesh/culvert/cli/laptop"
)

// awaitNamespace waits for the end of a namespace that is being deleted, such as that
// of a mesh that was just taken away: what is in it goes with it, and nothing can be
// made in it. A namespace that stays, or is not there, is not waited for.
func (i *Installer) awaitNamespace(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, i.Timeout, fmt.Errorf("not gone after %s", i.Timeout))
	defer cancel()
	var ns *corev1.Namespace
	told := false
	err := i.until(ctx, func(ctx context.Context) (bool, error) {
		found, err := i.Cluster.Client.CoreV1().Namespaces().Get(ctx, i.Cluster.Namespace, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			return true, nil
		case apierrors.IsForbidden(err): // who may not even look is told of it by what comes next
			return true, nil
		case err != nil:
			return false, err
		}
		if ns = found; !ending(ns) {
			return true, nil
		}
		if !told {
			told = true
			i.say("namespace %s is being deleted: waiting until it is gone", ns.Name)
		}
		return false, nil
	})
	if err == nil || ns == nil || !ending(ns) {
		return err
	}
	return laptop.WithHint(fmt.Errorf("namespace %s is being deleted: %w%s", ns.Name, context.Cause(ctx), holding(ns)),
		"kubectl get all,events -n %s shows what holds it; install once more when it is gone, or into another one with --namespace", ns.Name)
}

func ending(ns *corev1.Namespace) bool {
	return ns.DeletionTimestamp != nil || ns.Status.Phase == corev1.NamespaceTerminating
}

// holding is what Kubernetes says of why a namespace does not end.
func holding(ns *corev1.Namespace) string {
	var why []string
	for _, c := range ns.Status.Conditions {
		if c.Status == corev1.ConditionTrue && c.Message != "" {
			why = append(why, c.Message)
		}
	}
	if slices.Sort(why); len(why) == 0 {
		return ""
	}
	return ": " + strings.Join(why, "; ")
}
