// Package enroll decides which pods are in the mesh, and how each is captured.
//
//	pod + its namespace + Config ──▶ Decide ──▶ Decision{InMesh, Reason, Capture}
//
// The decision is pure: the same labels and annotations always give the same
// answer, and the answer says why. Everything is safe for concurrent use.
package enroll

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// Labels and annotations that users and agents write.
const (
	LabelDataplaneMode        = "istio.io/dataplane-mode"
	AnnotationSidecar         = "sidecar.istio.io/status"
	AnnotationRedirection     = "ambient.istio.io/redirection" // written by the node agent
	AnnotationBypassInbound   = "ambient.istio.io/bypass-inbound-capture"
	AnnotationDNSCapture      = "ambient.istio.io/dns-capture"
	AnnotationVirtual         = "istio.io/reroute-virtual-interfaces"
	labelApp                  = "app"
	ztunnelApp                = "ztunnel"
	modeAmbient, modeExcluded = "ambient", "none"
)

// Values of AnnotationRedirection.
const (
	RedirectionEnabled = "enabled" // captured, and a ztunnel has taken the pod
	RedirectionPending = "pending" // captured, but no ztunnel has taken it yet
)

// Pod is what the decision looks at, and what the agent needs to carry it out.
type Pod struct {
	UID            mesh.PodUID
	Name           string
	Namespace      string
	ServiceAccount string // never empty
	Node           string
	HostNetwork    bool
	Finished       bool // its phase is Succeeded or Failed
	Labels         map[string]string
	Annotations    map[string]string
	IPs            []netip.Addr
	ProbePorts     []uint16 // of liveness, readiness and startup probes, ascending
}

// Info returns the pod's name as ztunnel knows it.
func (p Pod) Info() mesh.PodInfo {
	return mesh.PodInfo{Name: p.Name, Namespace: p.Namespace, ServiceAccount: p.ServiceAccount}
}

// Namespace is a Kubernetes namespace.
type Namespace struct {
	Name   string
	Labels map[string]string
}

// Config says which pods are never or by default in the mesh.
type Config struct {
	// ExcludedNamespaces are never in the mesh.
	ExcludedNamespaces []string
	// SystemNamespaces are where ztunnel itself runs.
	SystemNamespaces []string
	// DNSCapture is the default of the pod annotation.
	DNSCapture bool
}

// DefaultConfig excludes kube-system and knows the usual homes of ztunnel.
func DefaultConfig() Config {
	return Config{
		ExcludedNamespaces: []string{"kube-system"},
		SystemNamespaces:   []string{"culvert-system", "istio-system"},
	}
}

// Reason says why a pod is in the mesh or out of it.
type Reason string

// All reasons there are.
const (
	PodLabel          Reason = "pod label istio.io/dataplane-mode=ambient"
	NamespaceLabel    Reason = "namespace label istio.io/dataplane-mode=ambient"
	HostNetwork       Reason = "pod uses the host network"
	HasSidecar        Reason = "pod has a sidecar"
	ExcludedNamespace Reason = "namespace is excluded from the mesh"
	IsZtunnel         Reason = "pod is a ztunnel"
	Finished          Reason = "pod has finished"
	OptedOut          Reason = "pod label istio.io/dataplane-mode=none"
	NotLabelled       Reason = "neither the pod nor its namespace is labelled istio.io/dataplane-mode=ambient"
)

// Capture says which of the pod's traffic is captured, beside outbound TCP.
type Capture struct {
	BypassInbound     bool
	DNS               bool
	VirtualInterfaces []string
}

// Decision is the answer for one pod.
type Decision struct {
	InMesh  bool
	Reason  Reason
	Capture Capture // zero when not InMesh
}

// Decide returns whether the pod is in the mesh.
func Decide(cfg Config, p Pod, ns Namespace) Decision {
	if r := exclusion(cfg, p); r != "" {
		return Decision{Reason: r}
	}
	r := NotLabelled
	switch p.Labels[LabelDataplaneMode] {
	case modeAmbient:
		r = PodLabel
	case modeExcluded:
		return Decision{Reason: OptedOut}
	default:
		if ns.Labels[LabelDataplaneMode] != modeAmbient {
			return Decision{Reason: NotLabelled}
		}
		r = NamespaceLabel
	}
	return Decision{InMesh: true, Reason: r, Capture: capture(cfg, p)}
}

// exclusion returns why the pod can never be in the mesh, if so.
func exclusion(cfg Config, p Pod) Reason {
	switch {
	case p.HostNetwork:
		return HostNetwork
	case p.Annotations[AnnotationSidecar] != "":
		return HasSidecar
	case slices.Contains(cfg.ExcludedNamespaces, p.Namespace):
		return ExcludedNamespace
	case p.Labels[labelApp] == ztunnelApp && slices.Contains(cfg.SystemNamespaces, p.Namespace):
		return IsZtunnel
	case p.Finished:
		return Finished
	}
	return ""
}

func capture(cfg Config, p Pod) Capture {
	c := Capture{DNS: cfg.DNSCapture, BypassInbound: p.Annotations[AnnotationBypassInbound] == "true"}
	switch p.Annotations[AnnotationDNSCapture] {
	case "true":
		c.DNS = true
	case "false":
		c.DNS = false
	}
	for name := range strings.SplitSeq(p.Annotations[AnnotationVirtual], ",") {
		if name = strings.TrimSpace(name); name != "" {
			c.VirtualInterfaces = append(c.VirtualInterfaces, name)
		}
	}
	return c
}
