package install

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/version"
)

// Status is a result's weight.
type Status string

// What a check can come to.
const (
	OK      Status = "ok"
	Warning Status = "warning" // works, and somebody should look
	Failed  Status = "failed"
	Unknown Status = "unknown" // what it goes by could not be read
)

// Result is what a check found about one subject.
type Result struct {
	Check   string `json:"check"`
	Subject string `json:"subject,omitempty"`
	Status  Status `json:"status"`
	Detail  string `json:"detail"`
	Fix     string `json:"fix,omitempty"`
}

// check is one line of the table: what it needs to know, and what it says about it.
type check struct {
	name  string
	needs []string // fields of Facts
	run   func(f *Facts) []Result
}

// before are checks of a cluster, whether the mesh is there or not.
var before = []check{
	{"kubernetes", []string{"Server"}, checkServer},
	{"permissions", []string{"Lacking"}, checkRights},
	{"gateway api", []string{"Definitions"}, checkGatewayAPI},
	{"other meshes", []string{"Deployments", "Daemons"}, checkOthers},
	{"nodes", []string{"Nodes"}, checkNodes},
	{"pod security", []string{"Namespaces"}, checkPodSecurity},
	{"network policy", []string{"NetworkPolicies", "Pods", "Namespaces", "Deployments"}, checkNetworkPolicies},
}

// after are checks of a mesh that is installed.
var after = []check{
	{"release", []string{"Installed"}, checkRelease},
	{"versions", []string{"Pods"}, checkVersions},
	{"definitions", []string{"Definitions"}, checkDefinitions},
	{"control plane", []string{"Deployments", "Pods"}, checkControl},
	{"leader", []string{"Lease"}, checkLease},
	{"node agents", []string{"Daemons", "Nodes", "Pods"}, checkAgents},
	{"node proofs", []string{"Nodes"}, checkProofs},
	{"ztunnels", []string{"Daemons", "Nodes", "Pods"}, checkProxies},
	{"certificates", []string{"Authority"}, checkAuthority},
	{"trust bundles", []string{"Roots", "Namespaces"}, checkRoots},
	{"webhook", []string{"Webhooks"}, checkWebhooks},
	{"pods in the mesh", []string{"Pods", "Namespaces"}, checkEnrolled},
	{"waypoints", []string{"Gateways", "Services", "Namespaces", "Pods"}, checkWaypoints},
}

// Check runs the checks of a cluster, and unless onlyBefore those of an installed
// mesh. The order is that of the tables, in which causes come before effects.
func Check(f *Facts, onlyBefore bool) (results []Result) {
	table := before
	if !onlyBefore {
		table = slices.Concat(before, after)
	}
	for _, c := range table {
		if r, unread := c.unread(f); unread {
			results = append(results, r)
			continue
		}
		for _, r := range c.run(f) {
			r.Check = c.name
			results = append(results, r)
		}
	}
	return results
}

// unread is the result of a check whose facts are missing.
func (c check) unread(f *Facts) (Result, bool) {
	for _, field := range c.needs {
		if err := f.Unread[field]; err != nil {
			return Result{c.name, "", Unknown, fmt.Sprintf("could not be read: %v", err), "check needs the rights to read the cluster: use --context of who has them"}, true
		}
	}
	return Result{}, false
}

// Worst is the gravest status of results.
func Worst(results []Result) Status {
	worst := OK
	for _, s := range []Status{Unknown, Warning, Failed} {
		if slices.ContainsFunc(results, func(r Result) bool { return r.Status == s }) {
			worst = s
		}
	}
	return worst
}

func ok(format string, args ...any) []Result {
	return []Result{{Status: OK, Detail: fmt.Sprintf(format, args...)}}
}

func one(s Status, subject, detail, fix string) []Result {
	return []Result{{Subject: subject, Status: s, Detail: detail, Fix: fix}}
}

// orOK is a single good result when nothing else is to be said.
func orOK(bad []Result, format string, args ...any) []Result {
	if len(bad) > 0 {
		return bad
	}
	return ok(format, args...)
}

// oldest is the first release of Kubernetes on which the charts install, newest the
// last on which they were tried.
const oldest, newest = "1.30", "1.36"

func checkServer(f *Facts) []Result {
	v, err := version.ParseGeneric(f.Server)
	if err != nil {
		return one(Unknown, "", fmt.Sprintf("API server says it is %q", f.Server), "")
	}
	switch {
	case v.LessThan(version.MustParseGeneric(oldest)):
		return one(Failed, "", "Kubernetes "+f.Server, "upgrade to Kubernetes "+oldest+" or newer")
	case v.Minor() > version.MustParseGeneric(newest).Minor():
		return one(Warning, "", "Kubernetes "+f.Server+" is newer than what this version was tried on ("+newest+")", "look for a newer culvert")
	}
	return ok("Kubernetes %s", f.Server)
}

func checkRights(f *Facts) (bad []Result) {
	var list []string
	for _, r := range f.Lacking {
		list = append(list, r.String())
	}
	if len(list) > 0 {
		return one(Failed, "", "missing: "+strings.Join(list, "; "), "install with the rights of cluster-admin: --context chooses other credentials")
	}
	return ok("sufficient to install")
}

// gatewayKinds are the kinds of Gateway API that waypoints and routes are made of.
var gatewayKinds = []string{"gatewayclasses", "gateways", "httproutes"}

func checkGatewayAPI(f *Facts) (bad []Result) {
	var missing []string
	bundle := ""
	for _, kind := range gatewayKinds {
		name := kind + ".gateway.networking.k8s.io"
		i := slices.IndexFunc(f.Definitions, func(d Definition) bool { return d.Name == name })
		switch {
		case i < 0:
			missing = append(missing, kind)
		case !slices.Contains(f.Definitions[i].Served, "v1"):
			bad = append(bad, one(Failed, name, "does not serve version v1", "install Gateway API 1.1 or newer in its place")...)
		default:
			bundle = strings.TrimSpace(f.Definitions[i].Bundle + " " + f.Definitions[i].Channel)
		}
	}
	switch {
	case len(missing) > 0 && f.Installed.Status == "":
		return ok("not there yet; comes with the install")
	case len(missing) > 0:
		return append(bad, one(Failed, "", "missing: "+strings.Join(missing, ", "), "culvert upgrade brings the definitions; waypoints and routes do nothing without them")...)
	}
	return orOK(bad, "%s", strings.TrimSpace("present "+bundle))
}

// checkOthers looks for another ambient mesh, which would claim the same pods.
func checkOthers(f *Facts) (bad []Result) {
	for _, d := range f.Deployments {
		if d.Name == controlName && d.Namespace != f.Namespace {
			bad = append(bad, one(Failed, d.Namespace+"/"+d.Name, "this mesh is installed in another namespace, and a cluster has one only",
				"--namespace "+d.Namespace+" is where to upgrade it; culvert uninstall --namespace "+d.Namespace+" takes it away")...)
		}
		if d.Labels["app"] == "istiod" && d.Labels["app.kubernetes.io/part-of"] != "culvert" {
			bad = append(bad, one(Failed, d.Namespace+"/"+d.Name, "Istio's control plane runs here: both would write the same status and serve the same pods",
				"istioctl uninstall --purge, or install this mesh on another cluster")...)
		}
	}
	for _, d := range f.Daemons {
		foreign := d.Labels["app.kubernetes.io/part-of"] != "culvert"
		switch {
		case d.Name == "istio-cni-node" && foreign:
			bad = append(bad, one(Failed, d.Namespace+"/"+d.Name, "Istio's CNI agent captures pods with the same label", "helm uninstall istio-cni -n "+d.Namespace)...)
		case d.Name == proxyName && d.Namespace != f.Namespace && foreign:
			bad = append(bad, one(Failed, d.Namespace+"/"+d.Name, "another ztunnel runs on the nodes", "helm uninstall ztunnel -n "+d.Namespace)...)
		}
	}
	return orOK(bad, "none")
}

// oldestKernel has everything that rules, tunnels and handover use.
const oldestKernel = "5.10"

func checkNodes(f *Facts) (bad []Result) {
	kinds := map[string]bool{}
	for _, n := range f.Nodes {
		i := n.Status.NodeInfo
		kinds[fmt.Sprintf("%s/%s kernel %s %s", i.OperatingSystem, i.Architecture, i.KernelVersion, i.ContainerRuntimeVersion)] = true
		kernel, err := version.ParseGeneric(i.KernelVersion)
		switch {
		case i.OperatingSystem != "linux":
			bad = append(bad, one(Warning, n.Name, i.OperatingSystem+" is not supported: its pods stay out of the mesh", "use Linux nodes for pods of the mesh")...)
		case i.Architecture != "amd64" && i.Architecture != "arm64":
			bad = append(bad, one(Failed, n.Name, "there are no images for "+i.Architecture, "use amd64 or arm64 nodes")...)
		case err == nil && kernel.LessThan(version.MustParseGeneric(oldestKernel)):
			bad = append(bad, one(Failed, n.Name, "kernel "+i.KernelVersion, "upgrade the node's kernel to "+oldestKernel+" or newer")...)
		case !strings.HasPrefix(i.ContainerRuntimeVersion, "containerd://") && !strings.HasPrefix(i.ContainerRuntimeVersion, "cri-o://"):
			bad = append(bad, one(Warning, n.Name, "container runtime "+i.ContainerRuntimeVersion+" was not tried", "use containerd or CRI-O")...)
		}
		if !nodeReady(n) {
			bad = append(bad, one(Warning, n.Name, "is not ready: nothing can be installed on it now", "kubectl describe node "+n.Name)...)
		}
	}
	if len(f.Nodes) == 0 {
		return one(Failed, "", "the cluster has no nodes", "add a node")
	}
	return orOK(bad, "%d: %s", len(f.Nodes), strings.Join(slices.Sorted(maps.Keys(kinds)), "; "))
}

func nodeReady(n corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

func checkPodSecurity(f *Facts) []Result {
	const enforce = "pod-security.kubernetes.io/enforce"
	for _, n := range f.Namespaces {
		if n.Name != f.Namespace {
			continue
		}
		if level := n.Labels[enforce]; level == "baseline" || level == "restricted" {
			return one(Failed, n.Name, "pod security level "+level+" does not let node agents and ztunnels start",
				fmt.Sprintf("kubectl label namespace %s %s=privileged --overwrite", n.Name, enforce))
		}
		return ok("namespace %s admits node agents", n.Name)
	}
	return ok("namespace %s does not exist yet; the install makes it", f.Namespace)
}

// Line is a result's subject and detail.
func (r Result) Line() string {
	if r.Subject == "" {
		return r.Detail
	}
	return r.Subject + ": " + r.Detail
}
