package install

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

func checkRelease(f *Facts) []Result {
	i := f.Installed
	switch i.Status {
	case "":
		return one(Failed, "", "the mesh is not installed in namespace "+f.Namespace, "culvert install; or --namespace names where it is")
	case "deployed":
		return ok("%s, revision %d, since %s", i.Version, i.Revision, i.Since.UTC().Format(time.RFC3339))
	case "failed":
		return one(Failed, "", fmt.Sprintf("revision %d failed: %s", i.Revision, i.Note), tryAgain(i.Revision))
	}
	return one(Warning, "", fmt.Sprintf("revision %d is %s since %s", i.Revision, i.Status, i.Since.UTC().Format(time.RFC3339)),
		"wait for the other command; when it was killed, culvert upgrade --unlock")
}

// tryAgain is what to do about a revision that failed.
func tryAgain(revision int) string {
	if revision == 1 { // there is nothing to go back to
		return "culvert install tries again, with --set for what was wrong; culvert uninstall takes away what is there"
	}
	return "culvert upgrade tries again; culvert upgrade --rollback goes back"
}

// checkVersions compares this program, the control plane and the nodes' programs.
func checkVersions(f *Facts) (bad []Result) {
	found := map[string][]string{} // version -> what has it
	var versions []string
	for _, app := range []string{controlName, agentName, proxyName} {
		for _, p := range f.meshPods(app) {
			v := imageVersion(p)
			if v == "" {
				continue
			}
			if found[v] == nil {
				versions = append(versions, v)
			}
			if !slices.Contains(found[v], app) {
				found[v] = append(found[v], app)
			}
		}
	}
	if len(versions) > 1 {
		var list []string
		for _, v := range versions {
			list = append(list, v+" ("+strings.Join(found[v], ", ")+")")
		}
		bad = append(bad, one(Warning, "", "more than one runs: "+strings.Join(list, "; "), "a rollout is under way, or stuck: kubectl rollout status -n "+f.Namespace+" daemonset/"+proxyName)...)
	}
	if older(f.CLI, f.Installed.Version) {
		bad = append(bad, one(Warning, "", fmt.Sprintf("this program is %s, the mesh %s", f.CLI, f.Installed.Version), "use the culvert of the mesh's version")...)
	}
	if older(f.Installed.Version, f.CLI) {
		bad = append(bad, one(Warning, "", fmt.Sprintf("this program is %s, the mesh %s", f.CLI, f.Installed.Version), "culvert upgrade")...)
	}
	return orOK(bad, "%s everywhere", cmp.Or(strings.Join(versions, ""), f.Installed.Version))
}

// meshKinds are the kinds beside Gateway API's that the control plane reads.
var meshKinds = []string{"authorizationpolicies.security.istio.io", "peerauthentications.security.istio.io"}

func checkDefinitions(f *Facts) (bad []Result) {
	for _, name := range meshKinds {
		i := slices.IndexFunc(f.Definitions, func(d Definition) bool { return d.Name == name })
		switch {
		case i < 0:
			bad = append(bad, one(Failed, name, "is not there: nobody can write such objects", "culvert upgrade brings it")...)
		case !f.Definitions[i].Ready:
			bad = append(bad, one(Failed, name, "is not served", "kubectl describe crd "+name)...)
		}
	}
	return orOK(bad, "present")
}

func checkControl(f *Facts) []Result {
	for _, d := range f.Deployments {
		if d.Namespace != f.Namespace || d.Name != controlName {
			continue
		}
		o := Observed{Workload: Workload{"Deployment", d.Namespace, d.Name}, Pods: f.meshPods(controlName), Events: eventsOf(d.Namespace, d.Name, f.Events)}
		o.fromDeployment(&d)
		p := Judge(o)
		switch {
		case p.Ready:
			return ok("%d of %d replicas ready", o.Ready, o.Want)
		case o.Ready > 0:
			return one(Warning, "", p.line(), remedy(p.Reasons))
		}
		return one(Failed, "", p.line(), remedy(p.Reasons))
	}
	return one(Failed, "", "Deployment "+controlName+" is not there", "culvert install puts it back")
}

func checkLease(f *Facts) []Result {
	l := f.Lease
	fix := fmt.Sprintf("kubectl logs -n %s deploy/%s: does it reach the API server?", f.Namespace, controlName)
	if l == nil || l.Spec.HolderIdentity == nil || *l.Spec.HolderIdentity == "" {
		return one(Failed, "", "no replica leads: nobody writes status or makes waypoints", fix)
	}
	if l.Spec.RenewTime == nil {
		return one(Failed, "", *l.Spec.HolderIdentity+" has never renewed the Lease", fix)
	}
	limit := 15 * time.Second
	if l.Spec.LeaseDurationSeconds != nil {
		limit = time.Duration(*l.Spec.LeaseDurationSeconds) * time.Second
	}
	if since := f.Now.Sub(l.Spec.RenewTime.Time); since > limit {
		return one(Failed, "", fmt.Sprintf("%s led, and has not renewed the Lease for %s", *l.Spec.HolderIdentity, since.Round(time.Second)), fix)
	}
	return ok("%s leads", *l.Spec.HolderIdentity)
}

// checkDaemon says on which nodes a program of the mesh is missing or not ready.
func checkDaemon(f *Facts, app string) (bad []Result, running int) {
	i := slices.IndexFunc(f.Daemons, func(d appsv1.DaemonSet) bool { return d.Namespace == f.Namespace && d.Name == app })
	if i < 0 {
		return one(Failed, "", "DaemonSet "+app+" is not there", "culvert install puts it back"), 0
	}
	pods, refused := f.meshPods(app), creationFailures(eventsOf(f.Namespace, app, f.Events))
	for _, n := range f.Nodes {
		if n.Status.NodeInfo.OperatingSystem != "linux" {
			continue
		}
		here := slices.DeleteFunc(slices.Clone(pods), func(p corev1.Pod) bool { return p.Spec.NodeName != n.Name })
		switch {
		case len(here) == 0 && len(refused) > 0:
			bad = append(bad, one(Failed, n.Name, app+" does not run there: "+refused[0], remedy(refused))...)
		case len(here) == 0:
			bad = append(bad, one(Failed, n.Name, app+" does not run there", "does its DaemonSet tolerate the node's taints? kubectl describe daemonset -n "+f.Namespace+" "+app)...)
		case !slices.ContainsFunc(here, podReady):
			why := podTrouble(here[0], f.Events)
			bad = append(bad, one(Failed, n.Name, fmt.Sprintf("%s is not ready: %s", here[0].Name, why), remedy([]string{why}))...)
		default:
			running++
		}
	}
	return bad, running
}

// pluginFix is what to do where the agent cannot install the CNI plugin.
func pluginFix(why string) string {
	switch {
	case strings.Contains(why, "read-only file system"), strings.Contains(why, "permission denied"):
		return "the container runtime's folders must be writable on the node; where it uses others: --platform PLATFORM, or --set cni.cniConfDir=FOLDER --set cni.cniBinDir=FOLDER"
	case strings.Contains(why, "no CNI configuration"):
		return "install the cluster's CNI plugin first; where its configuration is in another folder: --platform PLATFORM, or --set cni.cniConfDir=FOLDER"
	}
	return "look at the node's CNI configuration; the agent tries again when it changes"
}

func checkAgents(f *Facts) []Result {
	bad, running := checkDaemon(f, agentName)
	for _, n := range f.Nodes {
		a, asked := f.Agents[n.Name]
		switch {
		case !asked:
		case a.Error != "":
			bad = append(bad, one(Unknown, n.Name, "the agent could not be asked: "+a.Error, "may the API server reach pods, and you use pods/proxy?")...)
		case a.Plugin != "":
			bad = append(bad, one(Failed, n.Name, "the CNI plugin is not installed, new pods come into the mesh late or not at all: "+a.Plugin, pluginFix(a.Plugin))...)
		case a.Ztunnels == 0:
			bad = append(bad, one(Failed, n.Name, "no ztunnel is connected to the agent: new pods of the mesh cannot start", fmt.Sprintf("kubectl get pods -n %s -l app=%s --field-selector spec.nodeName=%s", f.Namespace, proxyName, n.Name))...)
		case !a.Ready:
			bad = append(bad, one(Warning, n.Name, "the agent does not know its pods yet", fmt.Sprintf("kubectl logs -n %s -l app=%s", f.Namespace, agentName))...)
		}
	}
	return orOK(bad, "ready on %d nodes, each with a ztunnel connected", running)
}

// proof is the condition in which an agent says whether its node can serve the mesh.
const proof = "culvert-mesh.github.io/Ready"

func checkProofs(f *Facts) (bad []Result) {
	proven := 0
	for _, n := range f.Nodes {
		i := slices.IndexFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool { return c.Type == proof })
		if i < 0 {
			continue
		}
		c := n.Status.Conditions[i]
		switch c.Status {
		case corev1.ConditionTrue:
			proven++
		case corev1.ConditionFalse:
			for _, line := range strings.Split(c.Message, " | ") {
				what, fix, _ := strings.Cut(line, "; fix: ")
				bad = append(bad, one(Failed, n.Name, what, fix)...)
			}
		default:
			bad = append(bad, one(Unknown, n.Name, cmp.Or(c.Message, c.Reason), "the agent tries again by itself")...)
		}
	}
	if proven == 0 {
		return orOK(bad, "no node has tried itself")
	}
	return orOK(bad, "%d nodes carried a connection of their own through the mesh", proven)
}

func checkProxies(f *Facts) []Result {
	bad, running := checkDaemon(f, proxyName)
	return orOK(bad, "ready on %d nodes: each knows the mesh and has its pods", running)
}

// soon is how long before its end a root should be replaced.
const soon = 30 * 24 * time.Hour

func checkAuthority(f *Facts) []Result {
	a := f.Authority
	left := a.Expires.Sub(f.Now)
	fix := "plug in a new intermediate of the same root: Secret " + pluggedCA
	if a.Secret == selfMadeCA {
		fix = fmt.Sprintf("kubectl logs -n %s deploy/%s: the control plane renews its own by itself", f.Namespace, controlName)
	}
	switch {
	case a.Secret == "":
		return one(Failed, "", "there is neither Secret "+pluggedCA+" nor "+selfMadeCA+": nobody gets a certificate", fmt.Sprintf("kubectl logs -n %s deploy/%s", f.Namespace, controlName))
	case a.Error != "":
		return one(Failed, a.Secret, a.Error, "give it ca-cert.pem with its own ca-key.pem, cert-chain.pem and root-cert.pem, in PEM; until then the last good authority signs, if there was one")
	case left <= 0:
		return one(Failed, a.Secret, "the authority's certificate ended at "+a.Expires.UTC().Format(time.RFC3339), fix)
	case left < soon:
		return one(Warning, a.Secret, fmt.Sprintf("the authority's certificate ends in %d days", int(left.Hours()/24)), fix)
	}
	return ok("authority of Secret %s, valid until %s", a.Secret, a.Expires.UTC().Format(time.DateOnly))
}

// checkRoots looks for namespaces of the mesh without the roots, or with others.
func checkRoots(f *Facts) (bad []Result) {
	want := f.Roots[f.Namespace]
	if want == "" {
		return one(Failed, f.Namespace, "there is no ConfigMap "+trustBundle+": ztunnels cannot know the control plane", fmt.Sprintf("does a replica lead? kubectl logs -n %s deploy/%s", f.Namespace, controlName))
	}
	certs, err := certificates(want)
	if err != nil {
		return one(Failed, f.Namespace, "ConfigMap "+trustBundle+": "+err.Error(), "delete it: the control plane writes it again")
	}
	ends := certs[0].NotAfter
	for _, c := range certs[1:] {
		if c.NotAfter.Before(ends) {
			ends = c.NotAfter
		}
	}
	if ends.Before(f.Now.Add(soon)) {
		bad = append(bad, one(Warning, f.Namespace, "a root ends at "+ends.UTC().Format(time.RFC3339), "add the new root to the bundle before, and remove the old one after every certificate has been renewed")...)
	}
	for _, n := range f.Namespaces {
		switch got := f.Roots[n.Name]; {
		case n.Status.Phase == corev1.NamespaceTerminating || got == want:
		case got == "":
			bad = append(bad, one(Warning, n.Name, "has no ConfigMap "+trustBundle+": waypoints cannot start in it", "the leading replica of the control plane writes it; does one lead?")...)
		default:
			bad = append(bad, one(Failed, n.Name, "its trust bundle has other roots than the mesh", "something else writes ConfigMap "+trustBundle+": another mesh, or trust-manager?")...)
		}
	}
	return orOK(bad, "the same %d root(s) in %d namespaces, valid until %s", len(certs), len(f.Roots), ends.UTC().Format(time.DateOnly))
}

func checkWebhooks(f *Facts) (bad []Result) {
	roots, _ := certificates(f.Roots[f.Namespace])
	for _, w := range f.Webhooks {
		certs, err := certificates(w.CA)
		switch {
		case w.CA == "":
			bad = append(bad, one(Warning, w.Name, "has no caBundle yet: nothing is validated", "the leading replica of the control plane writes it; does one lead?")...)
		case err != nil:
			bad = append(bad, one(Failed, w.Name, "caBundle: "+err.Error(), "restart the control plane: it writes the caBundle again")...)
		case len(roots) > 0 && !slices.ContainsFunc(certs, roots[0].Equal):
			bad = append(bad, one(Failed, w.Name, "its caBundle is of another root than the mesh's", "restart the control plane: it writes the caBundle again")...)
		}
	}
	if len(f.Webhooks) == 0 {
		return ok("none: what is wrong with an object is in its status")
	}
	return orOK(bad, "%d, trusted", len(f.Webhooks))
}
