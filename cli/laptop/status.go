package laptop

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/culvert-mesh/culvert/cli/laptop/cluster"
	"github.com/culvert-mesh/culvert/cli/laptop/fabric"
	"github.com/culvert-mesh/culvert/cli/laptop/supervise"
	"github.com/culvert-mesh/culvert/cni-plugin/enroll"
	"github.com/culvert-mesh/culvert/controlplane/gateway"
	"github.com/culvert-mesh/culvert/pkg/folder"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
	"github.com/culvert-mesh/culvert/pkg/run"
)

// Status is a mesh at one moment, as `culvert ps -o json` shows it.
type Status struct {
	Name       string             `json:"name"`
	Version    string             `json:"version"`
	Since      time.Time          `json:"since"`
	Folders    []string           `json:"folders"`
	Ready      bool               `json:"ready"`
	Started    bool               `json:"started"` // it has been ready before
	NotReady   []string           `json:"not_ready,omitempty"`
	Nodes      []NodeStatus       `json:"nodes"`
	Components []supervise.Status `json:"components"`
	Proxies    []ProxyStatus      `json:"proxies,omitempty"` // ztunnels, also those that drain
	Pods       []PodStatus        `json:"pods"`
	Services   []ServiceStatus    `json:"services"`
	Problems   []string           `json:"problems,omitempty"` // of the cluster
	Config     ConfigStatus       `json:"config"`             // of the control plane
}

// NodeStatus is one node.
type NodeStatus struct {
	Name    string   `json:"name"`
	Addrs   []string `json:"addresses"`
	Pods    int      `json:"pods"`
	Ztunnel string   `json:"ztunnel,omitempty"` // another program than ours
}

// MeshState says what a pod has to do with the mesh.
type MeshState string

// States of a pod.
const (
	MeshIn       MeshState = "in"       // captured, and taken by a ztunnel
	MeshPending  MeshState = "joining"  // should be in
	MeshLeaving  MeshState = "leaving"  // should be out
	MeshOut      MeshState = "out"      // outside
	MeshWaypoint MeshState = "waypoint" // a proxy of the mesh itself
)

// PodStatus is one pod.
type PodStatus struct {
	Namespace  string    `json:"namespace"`
	Name       string    `json:"name"`
	UID        string    `json:"uid"`
	Node       string    `json:"node"`
	Addrs      []string  `json:"addresses"`
	Deployment string    `json:"deployment,omitempty"`
	Account    string    `json:"service_account"`
	Identity   string    `json:"identity,omitempty"`
	Mesh       MeshState `json:"mesh"`
	Running    bool      `json:"running"`
	Ready      bool      `json:"ready"`
	Stopping   bool      `json:"stopping,omitempty"`
	Restarts   int       `json:"restarts"`
	PID        int       `json:"pid,omitempty"`
	Created    time.Time `json:"created"`
	Message    string    `json:"message,omitempty"`
	Env        []string  `json:"env,omitempty"` // what `culvert exec` starts with
}

// ServiceStatus is one service.
type ServiceStatus struct {
	Namespace string   `json:"namespace"`
	Name      string   `json:"name"`
	Addrs     []string `json:"addresses"`
	Ports     []int32  `json:"ports"`
	Endpoints int      `json:"endpoints"` // ready ones
}

// Status returns the mesh as it is now.
func (m *Mesh) Status(ctx context.Context) (*Status, error) {
	st := &Status{Name: m.cfg.Name, Version: m.cfg.Version, Since: m.began, Folders: m.cfg.Folders, Config: m.configStatus()}
	for _, u := range m.units {
		st.Components = append(st.Components, u.Status())
	}
	st.Proxies = m.proxyStatus()
	redirected := m.redirected()
	err := m.do(ctx, func() {
		st.Problems = slices.Clone(m.state.problems)
		for _, s := range m.state.cluster.Services() {
			st.Services = append(st.Services, ServiceStatus{s.Name.Namespace, s.Name.Name, texts(s.Addrs), s.Ports, s.Endpoints})
		}
		for _, p := range m.state.cluster.Pods() {
			st.Pods = append(st.Pods, m.podStatus(p, redirected[p.Name]))
		}
	})
	for _, n := range m.fabric.Nodes {
		st.Nodes = append(st.Nodes, m.nodeStatus(n, st.Pods))
	}
	st.NotReady = notReady(st)
	st.Ready = len(st.NotReady) == 0
	select {
	case <-m.ready:
		st.Started = true
	default:
	}
	return st, err
}

func (m *Mesh) nodeStatus(n *fabric.Node, pods []PodStatus) NodeStatus {
	s := NodeStatus{Name: n.Name, Ztunnel: m.cfg.Ztunnels[n.Name]}
	s.Addrs = texts(fabric.NodeAddrs(n.Number).Slice())
	for _, p := range pods {
		if p.Node == n.Name {
			s.Pods++
		}
	}
	return s
}

func (m *Mesh) podStatus(p *cluster.Pod, redirection string) PodStatus {
	s := p.Status()
	out := PodStatus{
		Namespace: p.Name.Namespace, Name: p.Name.Name, UID: p.UID, Node: p.Node, Deployment: p.Owner.Name,
		Account: p.Object.Spec.ServiceAccountName, Running: s.Running, Ready: s.Ready, Stopping: p.Stopping,
		Restarts: s.Restarts, PID: s.PID, Created: p.Created, Message: s.Message, Env: append(m.podEnv(), "HOSTNAME="+p.Name.Name),
	}
	out.Addrs = texts(p.Addrs.Slice())
	wants, is := m.inMesh(p.Object), redirection == enroll.RedirectionEnabled
	switch {
	case p.Object.Labels[gateway.LabelManaged] == gateway.ManagedMesh:
		out.Mesh = MeshWaypoint
	case wants && is:
		out.Mesh = MeshIn
	case wants:
		out.Mesh = MeshPending
	case redirection != "":
		out.Mesh = MeshLeaving
	default:
		out.Mesh = MeshOut
	}
	if out.Mesh == MeshIn || out.Mesh == MeshWaypoint {
		out.Identity = mesh.Identity{TrustDomain: mesh.DefaultTrustDomain, Namespace: out.Namespace, ServiceAccount: out.Account}.String()
	}
	return out
}

// redirected returns what the node agents have written about pods.
func (m *Mesh) redirected() map[cluster.Name]string {
	layers := folder.Layers{}
	for _, n := range m.nodes {
		layers.Objects = append(layers.Objects, m.dir.NodePatches(n))
	}
	out := map[cluster.Name]string{}
	for _, o := range folder.Load(layers).Objects {
		var pod struct {
			Metadata struct {
				Annotations map[string]string `yaml:"annotations"`
			} `yaml:"metadata"`
		}
		if o.Kind == "Pod" && o.Decode(&pod) == nil {
			out[cluster.Name{Namespace: o.Namespace, Name: o.Name}] = pod.Metadata.Annotations[enroll.AnnotationRedirection]
		}
	}
	return out
}

// notReady lists what is still missing.
func notReady(st *Status) (list []string) {
	for _, c := range st.Components {
		if c.State != supervise.Ready {
			list = append(list, fmt.Sprintf("%s is %s %s", c.Name, c.State, c.Detail))
		}
	}
	for _, p := range st.Pods {
		switch {
		case p.Stopping:
		case !p.Ready:
			list = append(list, fmt.Sprintf("pod %s/%s is not ready: %s", p.Namespace, p.Name, p.Message))
		case p.Mesh == MeshPending:
			list = append(list, fmt.Sprintf("pod %s/%s has not joined the mesh", p.Namespace, p.Name))
		}
	}
	return list
}

// awaitReady closes m.ready when everything is ready for the first time, and was
// so a moment before: the proxies hear of the last pod a little later than we do.
func (m *Mesh) awaitReady(ctx context.Context) error {
	for before := false; run.Sleep(ctx, 50*time.Millisecond) == nil; {
		st, err := m.Status(ctx)
		now := err == nil && st.Ready && st.Config.Connected
		if now && before {
			m.event("mesh", fmt.Sprintf("ready after %s", time.Since(m.began).Round(10*time.Millisecond)))
			close(m.ready)
			return nil
		}
		before = now
	}
	return nil
}

// ConfigStatus is what the control plane says about the configuration.
type ConfigStatus struct {
	Connected bool             `json:"connected"` // it answered
	Problems  []folder.Problem `json:"problems,omitempty"`
	Raw       json.RawMessage  `json:"control_plane,omitempty"` // its whole answer
}

func (m *Mesh) configStatus() ConfigStatus {
	m.configMu.Lock()
	defer m.configMu.Unlock()
	return m.config
}

// configPeriod is how often the control plane is asked.
const configPeriod = 250 * time.Millisecond

// watchConfig asks the control plane what it thinks of the configuration, and
// tells of every change.
func (m *Mesh) watchConfig(ctx context.Context) error {
	for run.Sleep(ctx, configPeriod) == nil {
		now := m.askConfig(ctx)
		m.configMu.Lock()
		was := m.config
		if !now.Connected {
			now.Problems, now.Raw = was.Problems, was.Raw
		}
		m.config = now
		m.configMu.Unlock()
		for _, p := range now.Problems {
			if !slices.Contains(was.Problems, p) {
				m.bad("config", p.String())
			}
		}
		if len(now.Problems) == 0 && len(was.Problems) > 0 {
			m.event("config", "every object is accepted")
		}
	}
	return nil
}

func (m *Mesh) askConfig(ctx context.Context) (c ConfigStatus) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	body, status, err := getInside(ctx, m.fabric.ControlPlane, mesh.PortAdmin, "/debug/status")
	if err != nil || status != http.StatusOK {
		return ConfigStatus{}
	}
	return ConfigOf(body)
}

// ConfigOf reads the control plane's answer at /debug/status.
func ConfigOf(body []byte) ConfigStatus {
	var answer struct {
		Problems   []folder.Problem `json:"problems"`
		Conditions []condition      `json:"conditions"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return ConfigStatus{}
	}
	for _, c := range answer.Conditions {
		if !c.Status {
			answer.Problems = append(answer.Problems, c.problem())
		}
	}
	return ConfigStatus{Connected: true, Problems: answer.Problems, Raw: body}
}

// condition is what the control plane came to about one object.
type condition struct {
	Object  string        `json:"object"`
	Type    string        `json:"type"`
	Status  bool          `json:"status"`
	Reason  reason.Reason `json:"reason"`
	Field   string        `json:"field"`
	Message string        `json:"message"`
	File    string        `json:"file"`
	Line    int           `json:"line"`
}

func (c condition) problem() folder.Problem {
	return folder.Problem{File: c.File, Line: c.Line, Object: c.Object, Field: c.Field, Reason: c.Reason,
		Detail: c.Message}
}

func texts[T fmt.Stringer](list []T) []string {
	out := make([]string, len(list))
	for i, v := range list {
		out[i] = v.String()
	}
	return out
}
