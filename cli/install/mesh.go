package install

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/culvert-mesh/culvert/cli/laptop"
	"github.com/culvert-mesh/culvert/cli/laptop/supervise"
	"github.com/culvert-mesh/culvert/cni-plugin/enroll"
	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// Mesh reads the mesh on a cluster in the words of one on this machine, so that the
// same verbs show both.
type Mesh struct{ c *Cluster }

// Mesh returns what reads the mesh on the cluster.
func (c *Cluster) Mesh() *Mesh { return &Mesh{c} }

// Status is the mesh at one moment.
func (m *Mesh) Status(ctx context.Context) (*laptop.Status, error) {
	var none metav1.ListOptions
	nodes, err := m.c.Client.CoreV1().Nodes().List(ctx, none)
	if err != nil {
		return nil, explain("list nodes", err)
	}
	namespaces, err := m.c.Client.CoreV1().Namespaces().List(ctx, none)
	if err != nil {
		return nil, explain("list namespaces", err)
	}
	pods, err := m.c.Client.CoreV1().Pods("").List(ctx, none)
	if err != nil {
		return nil, explain("list pods", err)
	}
	services, err := m.c.Client.CoreV1().Services("").List(ctx, none)
	if err != nil {
		return nil, explain("list services", err)
	}
	endpoints, err := m.c.Client.DiscoveryV1().EndpointSlices("").List(ctx, none)
	if err != nil {
		return nil, explain("list endpoints", err)
	}
	installed, err := m.c.Installed()
	if err != nil {
		return nil, err
	}
	st := m.c.statusOf(nodes.Items, namespaces.Items, pods.Items, services.Items, endpoints.Items)
	st.Name, st.Version, st.Since = "cluster", installed.Version, installed.Since
	for n := range st.Pods {
		if p := &st.Pods[n]; p.Mesh == laptop.MeshIn || p.Mesh == laptop.MeshWaypoint {
			p.Identity = mesh.Identity{TrustDomain: installed.TrustDomain, Namespace: p.Namespace, ServiceAccount: p.Account}.String()
		}
	}
	st.Config = m.config(ctx, pods.Items)
	st.Proxies = m.proxies(ctx, pods.Items)
	return st, nil
}

// agentPatience is how long an agent may take to answer; without its answer nothing is
// told of its ztunnels.
const agentPatience = 3 * time.Second

// proxies are the ztunnels that the nodes' agents know, also those that drain.
func (m *Mesh) proxies(ctx context.Context, pods []corev1.Pod) (list []laptop.ProxyStatus) {
	ctx, cancel := context.WithTimeout(ctx, agentPatience)
	defer cancel()
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, p := range pods {
		if p.Namespace != m.c.Namespace || p.Labels["app"] != agentName || !podReady(p) {
			continue
		}
		all.Go(func() {
			a, err := m.c.askAgent(ctx, p)
			if err != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			for _, z := range a.Proxies {
				list = append(list, laptop.ProxyStatus{Node: p.Spec.NodeName, ClientStatus: z})
			}
		})
	}
	all.Wait()
	slices.SortStableFunc(list, func(a, b laptop.ProxyStatus) int { return strings.Compare(a.Node, b.Node) })
	return list
}

// statusOf puts objects into the words of a status.
func (c *Cluster) statusOf(nodes []corev1.Node, namespaces []corev1.Namespace, pods []corev1.Pod, services []corev1.Service, endpoints []discoveryv1.EndpointSlice) *laptop.Status {
	st := &laptop.Status{Ready: true, Started: true}
	perNode, labels := map[string]int{}, map[string]map[string]string{}
	for _, n := range namespaces {
		labels[n.Name] = n.Labels
	}
	for _, p := range pods {
		perNode[p.Spec.NodeName]++
		switch app := p.Labels["app"]; {
		case p.Namespace == c.Namespace && (app == agentName || app == proxyName || app == controlName):
			part := componentOf(p, app)
			if part.State != supervise.Ready {
				st.Ready = false
				st.NotReady = append(st.NotReady, part.Name)
			}
			st.Components = append(st.Components, part)
		case p.Namespace != "kube-system":
			st.Pods = append(st.Pods, podOf(p, labels[p.Namespace], c.Namespace))
		}
	}
	for _, n := range nodes {
		s := laptop.NodeStatus{Name: n.Name, Pods: perNode[n.Name]}
		for _, a := range n.Status.Addresses {
			s.Addrs = append(s.Addrs, a.Address)
		}
		st.Nodes = append(st.Nodes, s)
	}
	ready := map[string]int{}
	for _, e := range endpoints {
		for _, one := range e.Endpoints {
			if one.Conditions.Ready == nil || *one.Conditions.Ready {
				ready[e.Namespace+"/"+e.Labels[discoveryv1.LabelServiceName]]++
			}
		}
	}
	for _, s := range services {
		st.Services = append(st.Services, serviceOf(s, ready[s.Namespace+"/"+s.Name]))
	}
	slices.SortFunc(st.Components, func(a, b supervise.Status) int { return strings.Compare(a.Name, b.Name) })
	return st
}

// componentOf is a program of the mesh: what is on a node is named by it.
func componentOf(p corev1.Pod, app string) supervise.Status {
	s := supervise.Status{Name: app + "-" + p.Spec.NodeName, State: supervise.Ready, Since: p.CreationTimestamp.Time}
	if app == controlName {
		s.Name = p.Name
	}
	for _, c := range p.Status.ContainerStatuses {
		s.Restarts += int(c.RestartCount)
		if t := c.LastTerminationState.Terminated; t != nil {
			s.LastExit = fmt.Sprintf("status %d", t.ExitCode)
		}
	}
	if !podReady(p) {
		s.State, s.Detail = supervise.Starting, podTrouble(p, nil)
	}
	if p.DeletionTimestamp != nil {
		s.State = supervise.Stopped
	}
	return s
}

func podOf(p corev1.Pod, namespaceLabels map[string]string, system string) laptop.PodStatus {
	cfg := enroll.DefaultConfig()
	cfg.SystemNamespaces = append(cfg.SystemNamespaces, system)
	wanted := enroll.Decide(cfg, enrollable(p), enroll.Namespace{Name: p.Namespace, Labels: namespaceLabels}).InMesh
	s := laptop.PodStatus{Namespace: p.Namespace, Name: p.Name, UID: string(p.UID), Node: p.Spec.NodeName, Account: p.Spec.ServiceAccountName,
		Running: p.Status.Phase == corev1.PodRunning, Ready: podReady(p), Stopping: p.DeletionTimestamp != nil, Created: p.CreationTimestamp.Time,
		Mesh: meshState(wanted, p.Annotations[enroll.AnnotationRedirection])}
	if o := metav1.GetControllerOf(&p); o != nil && o.Kind == "ReplicaSet" {
		s.Deployment = strings.TrimSuffix(o.Name, "-"+p.Labels["pod-template-hash"])
	}
	for _, ip := range p.Status.PodIPs {
		s.Addrs = append(s.Addrs, ip.IP)
	}
	if len(s.Addrs) == 0 {
		s.Addrs = []string{"-"}
	}
	for _, c := range p.Status.ContainerStatuses {
		s.Restarts += int(c.RestartCount)
	}
	if IsWaypoint(p.Labels["gateway.networking.k8s.io/gateway-class-name"]) {
		s.Mesh = laptop.MeshWaypoint
	}
	if !s.Ready && p.Status.Phase != corev1.PodSucceeded {
		s.Message = podTrouble(p, nil)
	}
	return s
}

func meshState(wanted bool, redirection string) laptop.MeshState {
	switch {
	case wanted && redirection == enroll.RedirectionEnabled:
		return laptop.MeshIn
	case wanted:
		return laptop.MeshPending
	case redirection != "":
		return laptop.MeshLeaving
	}
	return laptop.MeshOut
}

func serviceOf(s corev1.Service, endpoints int) laptop.ServiceStatus {
	out := laptop.ServiceStatus{Namespace: s.Namespace, Name: s.Name, Endpoints: endpoints}
	for _, a := range s.Spec.ClusterIPs {
		if a != corev1.ClusterIPNone {
			out.Addrs = append(out.Addrs, a)
		}
	}
	for _, p := range s.Spec.Ports {
		out.Ports = append(out.Ports, p.Port)
	}
	return out
}

// config asks a replica of the control plane what is wrong with objects.
func (m *Mesh) config(ctx context.Context, pods []corev1.Pod) laptop.ConfigStatus {
	for _, p := range pods {
		if p.Namespace != m.c.Namespace || p.Labels["app"] != controlName || !podReady(p) {
			continue
		}
		if answer, err := m.c.Ask(ctx, p.Namespace, p.Name, http.MethodGet, "/debug/status", nil); err == nil {
			return laptop.ConfigOf(answer)
		}
	}
	return laptop.ConfigStatus{}
}

// Admin asks a program: "ztunnel-NODE", "agent-NODE", a replica of the control plane,
// or a waypoint's pod by NAMESPACE/NAME.
func (m *Mesh) Admin(ctx context.Context, target, method, path string, body []byte) ([]byte, error) {
	if namespace, name, ok := strings.Cut(target, "/"); ok {
		return m.c.Ask(ctx, namespace, name, method, path, body)
	}
	for prefix, app := range map[string]string{"ztunnel-": proxyName, "agent-": agentName, "culvert-cni-": agentName} {
		node, ok := strings.CutPrefix(target, prefix)
		if !ok {
			continue
		}
		p, err := m.c.podOn(ctx, node, app)
		if err != nil {
			return nil, err
		}
		if app == agentName { // which changes nothing for those who reach its port
			if method != http.MethodGet {
				return nil, laptop.WithHint(fmt.Errorf("the agents of a cluster are told by their values alone"), "culvert upgrade --set global.logLevel=debug")
			}
			return m.c.Client.CoreV1().Pods(m.c.Namespace).ProxyGet("http", p, agentPort, path, nil).DoRaw(ctx)
		}
		return m.c.Ask(ctx, m.c.Namespace, p, method, path, body)
	}
	return m.c.Ask(ctx, m.c.Namespace, target, method, path, body)
}

// podOn is the newest ready pod of a node's program.
func (c *Cluster) podOn(ctx context.Context, node, app string) (string, error) {
	pods, err := c.Client.CoreV1().Pods(c.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=" + app, FieldSelector: "spec.nodeName=" + node})
	if err != nil {
		return "", explain("list pods", err)
	}
	var newest *corev1.Pod
	for n, p := range pods.Items {
		if podReady(p) && (newest == nil || newest.CreationTimestamp.Before(&p.CreationTimestamp)) {
			newest = &pods.Items[n]
		}
	}
	if newest == nil {
		return "", laptop.WithHint(fmt.Errorf("there is no ready %s on node %s", app, node), "culvert check says why")
	}
	return newest.Name, nil
}

// Certs asks every ztunnel and waypoint which certificates it holds.
func (m *Mesh) Certs(ctx context.Context) ([]laptop.HeldCerts, error) {
	st, err := m.Status(ctx)
	if err != nil {
		return nil, err
	}
	var held []laptop.HeldCerts
	for _, n := range st.Nodes {
		held = append(held, laptop.HeldCerts{Node: n.Name, Proxy: "ztunnel-" + n.Name})
	}
	for _, p := range st.Pods {
		if p.Mesh == laptop.MeshWaypoint && p.Ready {
			held = append(held, laptop.HeldCerts{Node: p.Node, Proxy: p.Namespace + "/" + p.Name})
		}
	}
	var all sync.WaitGroup
	for n := range held {
		all.Go(func() {
			var dump struct {
				Certificates json.RawMessage `json:"certificates"`
			}
			answer, err := m.Admin(ctx, held[n].Proxy, http.MethodGet, "/config_dump", nil)
			if err == nil {
				err = json.Unmarshal(answer, &dump)
			}
			if err != nil {
				held[n].Error = err.Error()
			}
			held[n].Certificates = dump.Certificates
		})
	}
	all.Wait()
	return held, nil
}
