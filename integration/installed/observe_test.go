//go:build kube

package installed

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// meshNamespace is the namespace of the mesh.
const meshNamespace = "culvert-system"

// mesh is what the API says of pods and services at one moment.
type mesh struct {
	pods     []*podObject
	services []*serviceObject
	slices   []*sliceObject
	gateways []*serviceObject
	before   map[string]int // restarts that had been
}

type metadata struct {
	Name, Namespace     string
	Labels, Annotations map[string]string
	DeletionTimestamp   *time.Time
	CreationTimestamp   time.Time
}

type condition struct {
	Type, Status, Reason, Message string
}

type podObject struct {
	Metadata metadata
	Spec     struct {
		NodeName, ServiceAccountName string
	}
	Status struct {
		Phase, PodIP      string
		Conditions        []condition
		ContainerStatuses []struct {
			ContainerID  string
			RestartCount int
		}
	}
}

type serviceObject struct {
	Metadata metadata
	Spec     struct {
		ClusterIP string
		Ports     []struct{ Port int }
	}
	Status struct{ Conditions []condition }
}

type sliceObject struct {
	Metadata  metadata
	Endpoints []struct{ Conditions struct{ Ready *bool } }
}

// observe asks the API.
func observe(s session) (*mesh, error) {
	kinds := "pods,services,endpointslices,gateways"
	r := kubectlWith("", "get", kinds, "-A", "-o", "json")
	if r.err != nil {
		return nil, r.err
	}
	var list struct{ Items []json.RawMessage }
	if err := json.Unmarshal([]byte(r.stdout), &list); err != nil {
		return nil, err
	}
	m := &mesh{before: map[string]int{}}
	if raw := s.read("restarts"); raw != "" {
		if err := json.Unmarshal([]byte(raw), &m.before); err != nil {
			return nil, err
		}
	}
	for _, raw := range list.Items {
		var kind struct{ Kind string }
		if err := json.Unmarshal(raw, &kind); err != nil {
			return nil, err
		}
		var err error
		switch kind.Kind {
		case "Pod":
			m.pods, err = appended(m.pods, raw)
		case "Service":
			m.services, err = appended(m.services, raw)
		case "EndpointSlice":
			m.slices, err = appended(m.slices, raw)
		case "Gateway":
			m.gateways, err = appended(m.gateways, raw)
		}
		if err != nil {
			return nil, err
		}
	}
	return m, nil
}

func appended[T any](list []*T, raw []byte) ([]*T, error) {
	v := new(T)
	err := json.Unmarshal(raw, v)
	return append(list, v), err
}

func (p *podObject) app() string    { return p.Metadata.Labels["app"] }
func (p *podObject) stopping() bool { return p.Metadata.DeletionTimestamp != nil }
func (p *podObject) ready() bool    { return !p.stopping() && isTrue(p.Status.Conditions, "Ready") }

func isTrue(list []condition, kind string) bool {
	return slices.ContainsFunc(list, func(c condition) bool { return c.Type == kind && c.Status == "True" })
}

// inMesh is the agent's word: it writes it when the pod's traffic is captured.
func (p *podObject) inMesh() bool {
	return p.Metadata.Annotations["ambient.istio.io/redirection"] == "enabled"
}

// isWaypoint: it is of the mesh, and in a user's namespace.
func (p *podObject) isWaypoint() bool {
	return p.Metadata.Labels["gateway.networking.k8s.io/gateway-name"] != ""
}

// component is what a laptop calls a part of the mesh, and "" for other pods.
func (p *podObject) component() string {
	switch node := laptopNode(p.Spec.NodeName); {
	case p.isWaypoint():
		return "pod_" + p.Metadata.Namespace + "_" + p.Metadata.Name
	case p.Metadata.Namespace != meshNamespace:
		return ""
	case p.app() == "ztunnel":
		return "ztunnel-" + node
	case p.app() == "culvert-controlplane":
		return "controlplane"
	case strings.HasPrefix(p.Metadata.Name, "culvert-cni"):
		return "agent-" + node
	}
	return ""
}

// container is the identifier of the first container.
func (p *podObject) container() string {
	if len(p.Status.ContainerStatuses) == 0 {
		return ""
	}
	_, id, _ := strings.Cut(p.Status.ContainerStatuses[0].ContainerID, "://")
	return id
}

// restarts of each component and pod.
func (m *mesh) restarts() map[string]int {
	count := map[string]int{}
	for _, p := range m.pods {
		for _, c := range p.Status.ContainerStatuses {
			count[p.Metadata.Namespace+"/"+p.Metadata.Name] += c.RestartCount
		}
	}
	return count
}

// restarted is how often a pod's containers came back since `up`.
func (m *mesh) restarted(p *podObject) int {
	name := p.Metadata.Namespace + "/" + p.Metadata.Name
	return m.restarts()[name] - m.before[name]
}

// find returns the pod that a person means: by its name, that of a component, that of
// its Deployment, or the beginning of its name.
func (m *mesh) find(want string) *podObject {
	ns, name, qualified := strings.Cut(want, "/")
	if !qualified {
		ns, name = "", want
	}
	var found *podObject
	for _, p := range m.pods {
		if p.stopping() || ns != "" && ns != p.Metadata.Namespace {
			continue
		}
		if p.Metadata.Name == name || p.component() == want && want != "" {
			return p
		}
		if strings.HasPrefix(p.Metadata.Name, name) && p.Metadata.Namespace != meshNamespace && (found == nil || p.ready()) {
			found = p
		}
	}
	return found
}

// proxies are the pods that write access lines.
func (m *mesh) proxies() (list []*podObject) {
	for _, p := range m.pods {
		if p.app() == "ztunnel" && p.Metadata.Namespace == meshNamespace || p.isWaypoint() {
			list = append(list, p)
		}
	}
	return list
}

// users reports whether a namespace is one of those that scripts have.
func users(namespace string) bool {
	return !strings.HasPrefix(namespace, "kube-") && namespace != meshNamespace && namespace != namespaceOfShop && namespace != "default"
}

// namespaceOfShop is that of the other tests.
const namespaceOfShop = namespace

// notReady are the pods and Gateways of scripts that are not.
func (m *mesh) notReady() (list []string) {
	for _, p := range m.pods {
		if users(p.Metadata.Namespace) && !p.stopping() && !p.ready() {
			list = append(list, "pod "+p.Metadata.Namespace+"/"+p.Metadata.Name)
		}
	}
	for _, g := range m.gateways {
		if users(g.Metadata.Namespace) && !isTrue(g.Status.Conditions, "Programmed") {
			list = append(list, "gateway "+g.Metadata.Namespace+"/"+g.Metadata.Name)
		}
	}
	return list
}

// conditions of services that say what does not hold.
func (m *mesh) conditions() (list []string) {
	for _, s := range m.services {
		for _, c := range s.Status.Conditions {
			if users(s.Metadata.Namespace) && c.Status == "False" {
				list = append(list, fmt.Sprintf("service %s/%s: %s: %s", s.Metadata.Namespace, s.Metadata.Name, c.Reason, c.Message))
			}
		}
	}
	return list
}

// mark is yes, no or stopping.
func (p *podObject) mark() string {
	switch {
	case p.stopping():
		return "stopping"
	case p.ready():
		return "yes"
	}
	return "no"
}

func (p *podObject) membership() string {
	if p.inMesh() {
		return "in"
	}
	return "out"
}

func (p *podObject) identity() string {
	if !p.inMesh() {
		return "-"
	}
	return "spiffe://cluster.local/ns/" + p.Metadata.Namespace + "/sa/" + p.Spec.ServiceAccountName
}

func (m *mesh) asJSON() any {
	var pods []map[string]any
	for _, p := range m.pods {
		if users(p.Metadata.Namespace) {
			pods = append(pods, map[string]any{"namespace": p.Metadata.Namespace, "name": p.Metadata.Name, "mesh": p.membership()})
		}
	}
	return pods
}

// print writes the tables that `culvert ps` has.
func (m *mesh) print(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	defer t.Flush()
	for _, p := range m.pods {
		if users(p.Metadata.Namespace) {
			fmt.Fprintf(t, "%s/%s\t%s\t%s\t%s\t%s\t%d\t%ds\t%s\n", p.Metadata.Namespace, p.Metadata.Name, p.Spec.NodeName, p.Status.PodIP,
				p.membership(), p.mark(), m.restarted(p), int(time.Since(p.Metadata.CreationTimestamp).Seconds()), p.identity())
		}
	}
	for _, s := range m.services {
		var ports []string
		for _, p := range s.Spec.Ports {
			ports = append(ports, fmt.Sprint(p.Port))
		}
		fmt.Fprintf(t, "%s/%s\t%s\t%s\t%d\n", s.Metadata.Namespace, s.Metadata.Name, s.Spec.ClusterIP, strings.Join(ports, ","), m.endpoints(s))
	}
	for _, p := range m.pods {
		if name := p.component(); name != "" && !p.isWaypoint() {
			state := map[bool]string{true: "ready", false: "starting"}[p.ready()]
			if p.stopping() {
				state = "draining"
			}
			fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%s\n", name, state, 1, m.restarted(p), p.Metadata.Name)
		}
	}
}

// endpoints counts those of a service that are ready.
func (m *mesh) endpoints(s *serviceObject) (n int) {
	for _, slice := range m.slices {
		if slice.Metadata.Namespace != s.Metadata.Namespace || slice.Metadata.Labels["kubernetes.io/service-name"] != s.Metadata.Name {
			continue
		}
		for _, e := range slice.Endpoints {
			if e.Conditions.Ready == nil || *e.Conditions.Ready {
				n++
			}
		}
	}
	return n
}
