// Package podsource tells the node agent which pods run on its node and what
// their namespaces are labelled.
//
//	folder of YAML ──┐
//	                 ├──▶ Snapshot{Pods, Namespaces} ──▶ agent
//	API server ──────┘
//
// A Snapshot is immutable. A Source is run by one goroutine.
package podsource

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/culvert-mesh/culvert/cni-plugin/enroll"
	"github.com/culvert-mesh/culvert/pkg/folder"
	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// Snapshot is everything at one moment.
type Snapshot struct {
	Pods       map[mesh.PodUID]enroll.Pod // of this node
	Namespaces map[string]enroll.Namespace
}

// Source follows the pods of one node.
type Source interface {
	// Run calls handle with the first snapshot, and then with each that differs,
	// until ctx ends. handle is called by one goroutine at a time.
	Run(ctx context.Context, handle func(Snapshot)) error
}

// Folders is a Source that reads folders of YAML.
type Folders struct {
	node    string
	watcher *folder.Watcher
	log     *slog.Logger
}

// NewFolders returns a source of the pods of node in the layers.
func NewFolders(node string, layers folder.Layers, log *slog.Logger) *Folders {
	return &Folders{node: node, watcher: folder.NewWatcher(folder.Config{Layers: layers, Log: log}), log: log}
}

// Run implements Source. A pod that cannot be decoded, or has no UID yet, is left
// out and logged; the others go on.
func (f *Folders) Run(ctx context.Context, handle func(Snapshot)) error {
	return f.watcher.Run(ctx, func(s *folder.Snapshot) { handle(f.convert(s)) })
}

func (f *Folders) convert(s *folder.Snapshot) Snapshot {
	out := Snapshot{Pods: map[mesh.PodUID]enroll.Pod{}, Namespaces: map[string]enroll.Namespace{}}
	for key, o := range s.Objects {
		if key.Group != "" || key.Kind != "Pod" && key.Kind != "Namespace" {
			continue
		}
		if err := f.take(&out, o); err != nil {
			f.log.Warn("object left out", "object", key.String(), "error", err)
		}
	}
	return out
}

func (f *Folders) take(out *Snapshot, o *folder.Object) error {
	if o.Kind == "Namespace" {
		ns, err := DecodeNamespace(o)
		out.Namespaces[ns.Name] = ns
		return err
	}
	p, err := DecodePod(o)
	if err != nil || p.Node != f.node || p.UID == "" {
		return err
	}
	if strings.ContainsAny(string(p.UID), "/\x00") {
		return fmt.Errorf("pod UID %q: UIDs name files and cannot contain that", p.UID)
	}
	out.Pods[p.UID] = p
	return nil
}

// DecodeNamespace reads a Namespace object.
func DecodeNamespace(o *folder.Object) (enroll.Namespace, error) {
	var n corev1.Namespace
	err := decode(o, &n)
	return enroll.Namespace{Name: o.Name, Labels: n.Labels}, err
}

// DecodePod reads a Pod object.
func DecodePod(o *folder.Object) (enroll.Pod, error) {
	var p corev1.Pod
	if err := decode(o, &p); err != nil {
		return enroll.Pod{}, err
	}
	return FromPod(&p), nil
}

func decode(o *folder.Object, v any) error {
	raw, err := o.JSON()
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("decode %s: %w", o.Key(), err)
	}
	return nil
}

// FromPod keeps of a Kubernetes pod what the agent looks at.
func FromPod(p *corev1.Pod) enroll.Pod {
	return enroll.Pod{
		UID: mesh.PodUID(p.UID), Name: p.Name, Namespace: cmp.Or(p.Namespace, "default"),
		ServiceAccount: cmp.Or(p.Spec.ServiceAccountName, mesh.DefaultServiceAccount),
		Node:           p.Spec.NodeName,
		HostNetwork:    p.Spec.HostNetwork,
		Finished:       p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed,
		Labels:         p.Labels, Annotations: p.Annotations,
		IPs: podIPs(p.Status), ProbePorts: probePorts(p.Spec),
	}
}

func podIPs(s corev1.PodStatus) []netip.Addr {
	var ips []netip.Addr
	for _, ip := range append([]corev1.PodIP{{IP: s.PodIP}}, s.PodIPs...) {
		if a, err := netip.ParseAddr(ip.IP); err == nil && !slices.Contains(ips, a.Unmap()) {
			ips = append(ips, a.Unmap())
		}
	}
	return ips
}

// probePorts returns the TCP ports that the kubelet calls, ascending.
func probePorts(s corev1.PodSpec) []uint16 {
	ports := map[uint16]bool{}
	for _, c := range s.Containers {
		addPorts(ports, c)
	}
	for _, c := range s.InitContainers { // those that restart always have probes too
		addPorts(ports, c)
	}
	return slices.Sorted(maps.Keys(ports))
}

func addPorts(ports map[uint16]bool, c corev1.Container) {
	for _, probe := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe} {
		if probe == nil {
			continue
		}
		var port int32
		switch {
		case probe.HTTPGet != nil:
			port = portNumber(probe.HTTPGet.Port, c)
		case probe.TCPSocket != nil:
			port = portNumber(probe.TCPSocket.Port, c)
		case probe.GRPC != nil:
			port = probe.GRPC.Port
		}
		if port > 0 && port < 1<<16 {
			ports[uint16(port)] = true
		}
	}
}

// portNumber resolves a port's name by the container's ports.
func portNumber(p intstr.IntOrString, c corev1.Container) int32 {
	if p.Type == intstr.Int {
		return p.IntVal
	}
	for _, cp := range c.Ports {
		if cp.Name == p.StrVal {
			return cp.ContainerPort
		}
	}
	return 0
}
