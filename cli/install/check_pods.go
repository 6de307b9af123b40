package install

import (
	"fmt"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/culvert-mesh/culvert/cni-plugin/enroll"
	"github.com/culvert-mesh/culvert/pkg/netpolicy"
)

// checkEnrolled looks for running pods that should be in the mesh and are not, and
// for namespaces whose label does nothing.
func checkEnrolled(f *Facts) (bad []Result) {
	cfg := enroll.DefaultConfig()
	cfg.SystemNamespaces = append(cfg.SystemNamespaces, f.Namespace)
	in, namespaces := 0, map[string]bool{}
	for _, p := range f.Pods {
		d := enroll.Decide(cfg, enrollable(p), enroll.Namespace{Name: p.Namespace, Labels: f.labelsOf(p.Namespace)})
		state := p.Annotations[enroll.AnnotationRedirection]
		switch {
		case !d.InMesh && state == "" && f.labelsOf(p.Namespace)[enroll.LabelDataplaneMode] == "ambient" && d.Reason == enroll.ExcludedNamespace:
			bad = append(bad, one(Warning, p.Namespace, "the namespace is labelled, and excluded from the mesh", "use another namespace")...)
		case !d.InMesh || p.Status.Phase != corev1.PodRunning || p.DeletionTimestamp != nil:
		case state == enroll.RedirectionEnabled:
			in++
			namespaces[p.Namespace] = true
		default:
			bad = append(bad, f.notEnrolled(p, state))
		}
	}
	slices.SortStableFunc(bad, func(a, b Result) int { return strings.Compare(a.Subject, b.Subject) })
	bad = slices.CompactFunc(bad, func(a, b Result) bool { return a == b })
	if in == 0 && len(bad) == 0 {
		return ok("none yet: kubectl label namespace NAME istio.io/dataplane-mode=ambient")
	}
	return orOK(bad, "%d in %d namespaces", in, len(namespaces))
}

// notEnrolled says why a pod that should be in the mesh is not.
func (f *Facts) notEnrolled(p corev1.Pod, state string) Result {
	r := Result{Subject: p.Namespace + "/" + p.Name, Status: Failed, Detail: "is not in the mesh"}
	if state == enroll.RedirectionPending {
		r.Detail = "is captured, and no ztunnel serves it: its connections wait"
	}
	agent, asked := f.Agents[p.Spec.NodeName]
	for _, known := range agent.Pods {
		if known.Namespace == p.Namespace && known.Name == p.Name && known.Error != "" {
			r.Detail += ": " + known.Error
			r.Fix = "the agent tries again by itself; kubectl get events -n " + p.Namespace + " says more"
			return r
		}
	}
	if w := newestWarning(p.Name, f.Events); w != "" {
		r.Detail += ": " + w
	}
	switch {
	case !asked:
		r.Fix = "node " + p.Spec.NodeName + " has no agent; see node agents"
	case agent.Ztunnels == 0:
		r.Fix = "node " + p.Spec.NodeName + " has no ztunnel connected; see ztunnels"
	default:
		r.Fix = fmt.Sprintf("kubectl logs -n %s -l app=%s, of node %s", f.Namespace, agentName, p.Spec.NodeName)
	}
	return r
}

func enrollable(p corev1.Pod) enroll.Pod {
	return enroll.Pod{Name: p.Name, Namespace: p.Namespace, Node: p.Spec.NodeName, HostNetwork: p.Spec.HostNetwork,
		Finished: p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed, Labels: p.Labels, Annotations: p.Annotations}
}

func (f *Facts) labelsOf(namespace string) map[string]string {
	for _, n := range f.Namespaces {
		if n.Name == namespace {
			return n.Labels
		}
	}
	return nil
}

// Labels with which objects ask for a waypoint.
const (
	useWaypoint          = "istio.io/use-waypoint"
	useWaypointNamespace = "istio.io/use-waypoint-namespace"
)

// checkWaypoints looks for waypoints that are asked for and do not serve.
func checkWaypoints(f *Facts) (bad []Result) {
	users := map[string][]string{} // namespace/name -> who asks
	ask := func(who, namespace string, m metav1.ObjectMeta) {
		name := m.Labels[useWaypoint]
		if name == "" || name == "none" {
			return
		}
		if other := m.Labels[useWaypointNamespace]; other != "" {
			namespace = other
		}
		users[namespace+"/"+name] = append(users[namespace+"/"+name], who)
	}
	for _, n := range f.Namespaces {
		ask("namespace "+n.Name, n.Name, n.ObjectMeta)
	}
	for _, s := range f.Services {
		ask("service "+s.Namespace+"/"+s.Name, s.Namespace, s.ObjectMeta)
	}
	for _, p := range f.Pods {
		ask("pod "+p.Namespace+"/"+p.Name, p.Namespace, p.ObjectMeta)
	}
	serving := 0
	for _, key := range sortedKeys(users) {
		namespace, name, _ := strings.Cut(key, "/")
		i := slices.IndexFunc(f.Gateways, func(g Gateway) bool { return g.Namespace == namespace && g.Name == name })
		asked := "asked for by " + strings.Join(users[key][:min(3, len(users[key]))], ", ")
		switch {
		case i < 0:
			bad = append(bad, one(Failed, key, "there is no such Gateway, "+asked, fmt.Sprintf("culvert waypoint apply --namespace %s --name %s, or remove the label %s", namespace, name, useWaypoint))...)
		case !IsWaypoint(f.Gateways[i].Class):
			bad = append(bad, one(Failed, key, "is of class "+f.Gateways[i].Class+" and no waypoint, "+asked, "use class "+waypointClass)...)
		case !f.Gateways[i].Programmed:
			bad = append(bad, one(Failed, key, strings.TrimSuffix("does not serve: "+f.Gateways[i].Message, ": ")+", "+asked, "culvert waypoint status --namespace "+namespace+" "+name)...)
		default:
			serving++
		}
	}
	return orOK(bad, "%d in use, all serve", serving)
}

func sortedKeys(m map[string][]string) (keys []string) {
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// checkNetworkPolicies names policies that cut pods of the mesh off from one
// another, because they open a port and not the tunnel's.
func checkNetworkPolicies(f *Facts) (bad []Result) {
	hint := ""
	if !f.enforcesNetworkPolicies() {
		hint = "; by itself that opens every port to the mesh: controlplane.enforceNetworkPolicies=true keeps to the policy's ports"
	}
	cluster := netpolicy.Cluster{Namespaces: f.Namespaces, Pods: f.Pods, Policies: f.NetworkPolicies, InMesh: f.inMesh}
	for _, finding := range netpolicy.Blocked(cluster) {
		bad = append(bad, one(Failed, finding.Pod, finding.Message(), finding.Fix()+hint)...)
	}
	return orOK(bad, "none cuts off pods of the mesh")
}

func (f *Facts) inMesh(p *corev1.Pod) bool {
	return enroll.Decide(enroll.DefaultConfig(), enrollable(*p), enroll.Namespace{Name: p.Namespace, Labels: f.labelsOf(p.Namespace)}).InMesh
}

// enforcesNetworkPolicies reports whether the control plane has ztunnels hold to
// NetworkPolicies at the tunnel's end.
func (f *Facts) enforcesNetworkPolicies() bool {
	return slices.ContainsFunc(f.Deployments, func(d appsv1.Deployment) bool {
		return d.Namespace == f.Namespace && d.Name == controlName && slices.ContainsFunc(d.Spec.Template.Spec.Containers, func(c corev1.Container) bool {
			return slices.Contains(c.Args, "--network-policies=true")
		})
	})
}
