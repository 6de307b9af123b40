package gateway

import (
	"slices"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// host adds to a Deployment what matters where a scheduler and a kubelet run it:
// what it needs, where its pods go, and that it may run where the "restricted" pod
// security standard is enforced. How many pods there are is left to whoever scales.
func host(d *appsv1.Deployment) {
	d.Spec.Replicas = nil
	spec := &d.Spec.Template.Spec
	spec.SecurityContext.SeccompProfile = &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}
	for _, key := range []string{corev1.LabelTopologyZone, corev1.LabelHostname} {
		spec.TopologySpreadConstraints = append(spec.TopologySpreadConstraints, corev1.TopologySpreadConstraint{
			MaxSkew: 1, TopologyKey: key, WhenUnsatisfiable: corev1.ScheduleAnyway,
			LabelSelector:  &metav1.LabelSelector{MatchLabels: d.Spec.Selector.MatchLabels},
			MatchLabelKeys: []string{appsv1.DefaultDeploymentUniqueLabelKey},
		})
	}
	ctr := &spec.Containers[0]
	ctr.ImagePullPolicy = corev1.PullIfNotPresent
	ctr.Resources = corev1.ResourceRequirements{
		Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("64Mi")},
		Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("1Gi")}, // none of CPU: being throttled costs latency
	}
	ctr.Env = append(ctr.Env, corev1.EnvVar{Name: "GOMEMLIMIT", ValueFrom: &corev1.EnvVarSource{
		ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "limits.memory"}}})
}

// envGrace tells the waypoint how long it may drain.
const envGrace = "TERMINATION_GRACE_PERIOD_SECONDS"

// tellGrace tells the waypoint of the grace period that the pod has in the end,
// unless the user tells it something else.
func tellGrace(d *appsv1.Deployment) {
	spec := &d.Spec.Template.Spec
	i := slices.IndexFunc(spec.Containers, func(c corev1.Container) bool { return c.Name == containerName })
	if i < 0 || spec.TerminationGracePeriodSeconds == nil {
		return
	}
	ctr := &spec.Containers[i]
	if slices.ContainsFunc(ctr.Env, func(e corev1.EnvVar) bool { return e.Name == envGrace }) {
		return
	}
	ctr.Env = append(ctr.Env, corev1.EnvVar{Name: envGrace, Value: strconv.FormatInt(*spec.TerminationGracePeriodSeconds, 10)})
}
