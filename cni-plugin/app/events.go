package app

import (
	"errors"
	"strings"

	"github.com/culvert-mesh/culvert/cni-plugin/enroll"
	"github.com/culvert-mesh/culvert/cni-plugin/redirect"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/zds"
)

// Events is where people read what happens to pods and to the node, with a reason
// in one word and a sentence. One of package apiserver makes them Kubernetes Events,
// repeated ones counted, many ones held back.
type Events interface {
	PodEvent(uid mesh.PodUID, p mesh.PodInfo, warning bool, reason, message string)
	NodeEvent(warning bool, reason, message string)
}

// Severities of events.
const (
	Normal  = false
	Warning = true
)

// tell says something about the pod.
func (p *pod) tell(warning bool, reason, message string) {
	if e := p.agent.parts.Events; e != nil {
		e.PodEvent(p.uid, p.name, warning, reason, message)
	}
}

// tellFailed says why the pod is not where it should be.
func (p *pod) tellFailed(err error) {
	if errors.Is(err, zds.ErrNoZtunnel) {
		if p.taken {
			return // it is served as before; its ztunnel is about to find this agent
		}
		p.tell(Warning, "MeshPending", "no ztunnel of this node takes it: is the ztunnel DaemonSet's pod here running? It is tried again as soon as one connects")
		return
	}
	p.tell(Warning, "MeshFailed", "could not be brought into or out of the mesh, and is tried again: "+err.Error())
}

// tellForeign says that the pod comes from another mesh's agent, whose rules go in
// the same step in which ours come.
func (p *pod) tellForeign() {
	if p.rules != "" {
		return
	}
	if names, err := redirect.Foreign(p.ns); err == nil && len(names) > 0 {
		p.tell(Normal, "MeshMigrated", "rules of another mesh's agent are replaced: "+strings.Join(names, ", "))
		p.log.Info("rules of another mesh's agent are replaced", "rules", names)
	}
}

// tellSkipped says once why a pod that asks for the mesh itself cannot be in it. A
// label of the namespace asks for nobody in particular.
func (p *pod) tellSkipped(w wanted) {
	if p.skipped || w.spec.Labels[enroll.LabelDataplaneMode] != "ambient" {
		return
	}
	switch w.decision.Reason {
	case enroll.HostNetwork, enroll.HasSidecar, enroll.ExcludedNamespace:
		p.skipped = true
		p.tell(Warning, "MeshSkipped", "is labelled for the mesh and stays out of it: "+string(w.decision.Reason))
	}
}
