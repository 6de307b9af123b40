package gateway

import (
	"cmp"
	"maps"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

func typesUID(s string) types.UID { return types.UID(s) }

func (g Gateway) deployment(o Options) *appsv1.Deployment {
	replicas := cmp.Or(o.Replicas, 1)
	return &appsv1.Deployment{
		TypeMeta: typeMeta("apps/v1", "Deployment"), ObjectMeta: g.meta(g.deployed()),
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas,
			Selector: &metav1.LabelSelector{MatchLabels: g.selector()},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: g.podLabels(o), Annotations: g.podAnnotations()},
				Spec: corev1.PodSpec{
					ServiceAccountName:            g.account(),
					TerminationGracePeriodSeconds: new(int64(gracePeriod)),
					SecurityContext:               &corev1.PodSecurityContext{RunAsNonRoot: new(true)},
					Containers:                    []corev1.Container{g.container(o)},
					Volumes:                       volumes(),
				},
			},
		},
	}
}

func (g Gateway) podLabels(o Options) map[string]string {
	l := g.labels()
	l[LabelInject] = "false"
	l[LabelDataplaneMode] = "none"
	l[LabelCanonicalName] = g.deployed()
	l[LabelCanonicalRevision] = "latest"
	if o.Network != "" {
		l[LabelNetwork] = o.Network
	}
	return l
}

// podAnnotations are the user's, and how to scrape where he does not say.
func (g Gateway) podAnnotations() map[string]string {
	all := map[string]string{
		"prometheus.io/scrape": "true",
		"prometheus.io/port":   strconv.Itoa(mesh.PortMetrics),
		"prometheus.io/path":   "/stats/prometheus",
	}
	maps.Copy(all, g.Annotations)
	return all
}

func (g Gateway) container(o Options) corev1.Container {
	domain := cmp.Or(o.Domain, mesh.DefaultClusterDomain)
	return corev1.Container{
		Name:  containerName,
		Image: cmp.Or(o.Image, DefaultImage),
		Args: []string{"proxy", "waypoint", "--domain", "$(POD_NAMESPACE).svc." + domain,
			"--serviceCluster", g.Name + ".$(POD_NAMESPACE)"},
		Ports: []corev1.ContainerPort{
			{Name: "metrics", ContainerPort: mesh.PortMetrics, Protocol: corev1.ProtocolTCP},
			{Name: "status-port", ContainerPort: mesh.PortReady, Protocol: corev1.ProtocolTCP},
			{Name: "http-envoy-prom", ContainerPort: portStats, Protocol: corev1.ProtocolTCP},
		},
		Env: g.env(o),
		StartupProbe: &corev1.Probe{ProbeHandler: readyProbe(), PeriodSeconds: 1, FailureThreshold: startupRetries,
			SuccessThreshold: 1, TimeoutSeconds: 1},
		ReadinessProbe: &corev1.Probe{ProbeHandler: readyProbe(), PeriodSeconds: 15, FailureThreshold: 4,
			SuccessThreshold: 1, TimeoutSeconds: 1},
		SecurityContext: &corev1.SecurityContext{
			RunAsUser: new(int64(proxyUID)), RunAsGroup: new(int64(proxyUID)), RunAsNonRoot: new(true),
			AllowPrivilegeEscalation: new(false), Privileged: new(false), ReadOnlyRootFilesystem: new(true),
			Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		},
		VolumeMounts: []corev1.VolumeMount{
			{Name: "istio-token", MountPath: "/var/run/secrets/tokens"},
			{Name: "istiod-ca-cert", MountPath: "/var/run/secrets/istio"},
		},
	}
}

func (g Gateway) env(o Options) []corev1.EnvVar {
	env := []corev1.EnvVar{
		fieldEnv("POD_NAME", "metadata.name"),
		fieldEnv("POD_NAMESPACE", "metadata.namespace"),
		fieldEnv("INSTANCE_IP", "status.podIP"),
		fieldEnv("SERVICE_ACCOUNT", "spec.serviceAccountName"),
		fieldEnv("NODE_NAME", "spec.nodeName"),
		{Name: "GATEWAY_NAME", Value: g.Name},
	}
	if o.XDSAddress != "" {
		env = append(env, corev1.EnvVar{Name: "XDS_ADDRESS", Value: o.XDSAddress})
	}
	for _, v := range []corev1.EnvVar{
		{Name: "CA_ADDRESS", Value: o.CAAddress},
		{Name: "NETWORK", Value: o.Network},
		{Name: "TRUST_DOMAIN", Value: o.TrustDomain},
		{Name: "CLUSTER_DOMAIN", Value: o.Domain},
		{Name: "CLUSTER_ID", Value: o.Cluster},
		{Name: "LOG_FORMAT", Value: o.LogFormat},
		{Name: "MINIMUM_DRAIN_DURATION", Value: o.MinDrain},
	} {
		if v.Value != "" {
			env = append(env, v)
		}
	}
	return env
}

func fieldEnv(name, path string) corev1.EnvVar {
	return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}}
}

func readyProbe() corev1.ProbeHandler {
	return corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/healthz/ready", Port: intstr.FromInt32(mesh.PortReady)}}
}

func volumes() []corev1.Volume {
	return []corev1.Volume{
		{Name: "istio-token", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
			Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{
				Audience: "istio-ca", ExpirationSeconds: new(int64(tokenLifetime)), Path: "istio-token"}}},
		}}},
		{Name: "istiod-ca-cert", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
			LocalObjectReference: corev1.LocalObjectReference{Name: rootConfigMap}}}},
	}
}
