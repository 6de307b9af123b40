//go:build kube

package installed

import (
	"cmp"
	"encoding/json"
	"slices"
	"strings"
	"time"
)

// meshNamespace is the namespace of the mesh.
const meshNamespace = "culvert-system"

// seen is what the API says of a script's objects and of the mesh's pods.
type seen struct {
	names
	pods   []*seenObject
	others []*seenObject // Deployments and Gateways of the script
}

type seenObject struct {
	Kind     string
	Metadata struct {
		Name, Namespace   string
		Labels            map[string]string
		DeletionTimestamp *time.Time
		Generation        int
	}
	Spec struct {
		NodeName string
		Replicas int
	}
	Status struct {
		Conditions                         []struct{ Type, Status string }
		ObservedGeneration, ReadyReplicas  int
		UpdatedReplicas, AvailableReplicas int
		ContainerStatuses                  []struct{ ContainerID string }
	}
}

// observe asks the API.
func observe(s session) (*seen, error) {
	r := kubectlWith("", "get", "pods,deployments,gateways", "-A", "-o", "json")
	if r.err != nil {
		return nil, r.err
	}
	var list struct{ Items []*seenObject }
	if err := json.Unmarshal([]byte(r.stdout), &list); err != nil {
		return nil, err
	}
	m := &seen{names: s.names()}
	for _, o := range list.Items {
		ours := slices.ContainsFunc(m.spaces, func(name string) bool { return m.space(name) == o.Metadata.Namespace })
		switch {
		case o.Kind == "Pod" && (ours || o.Metadata.Namespace == meshNamespace):
			m.pods = append(m.pods, o)
		case ours:
			m.others = append(m.others, o)
		}
	}
	return m, nil
}

func (o *seenObject) app() string    { return o.Metadata.Labels["app"] }
func (o *seenObject) stopping() bool { return o.Metadata.DeletionTimestamp != nil }

func (o *seenObject) is(condition string) bool {
	for _, c := range o.Status.Conditions {
		if c.Type == condition {
			return c.Status == "True"
		}
	}
	return false
}

// ready: a pod serves, a Deployment has all its pods and no old one, a Gateway a proxy.
func (o *seenObject) ready() bool {
	switch o.Kind {
	case "Pod":
		return !o.stopping() && o.is("Ready")
	case "Gateway":
		return o.is("Programmed")
	}
	return o.Status.ObservedGeneration >= o.Metadata.Generation &&
		o.Status.UpdatedReplicas == o.Spec.Replicas && o.Status.AvailableReplicas == o.Spec.Replicas
}

// notReady are the objects of the script that are not.
func (m *seen) notReady() (list []string) {
	for _, o := range append(slices.Clone(m.others), m.pods...) {
		if o.Metadata.Namespace != meshNamespace && !o.stopping() && !o.ready() {
			list = append(list, strings.ToLower(o.Kind)+" "+o.Metadata.Namespace+"/"+o.Metadata.Name)
		}
	}
	return list
}

// component is what scripts call a part of the mesh, and "" for other pods.
func (m *seen) component(o *seenObject) string {
	if o.Metadata.Namespace != meshNamespace {
		return ""
	}
	switch o.app() {
	case "ztunnel":
		return "ztunnel-" + m.here(o.Spec.NodeName)
	case "culvert-cni":
		return "agent-" + m.here(o.Spec.NodeName)
	case "culvert-controlplane":
		return "controlplane"
	}
	return ""
}

// container is the identifier of the first container.
func (o *seenObject) container() string {
	if len(o.Status.ContainerStatuses) == 0 {
		return ""
	}
	_, id, _ := strings.Cut(o.Status.ContainerStatuses[0].ContainerID, "://")
	return id
}

// find returns the pod that a script means: by its name, that of a component, that of
// its Deployment, or the beginning of its name. One that is ready is preferred.
func (m *seen) find(want string) *seenObject {
	ns, name, qualified := strings.Cut(want, "/")
	if !qualified {
		ns, name = "", want
	}
	better := func(a, b *seenObject) int { return cmp.Compare(rank(b), rank(a)) }
	for _, match := range []func(*seenObject) bool{
		func(o *seenObject) bool { return m.component(o) == want },
		func(o *seenObject) bool { return o.Metadata.Name == name },
		func(o *seenObject) bool { return strings.HasPrefix(o.Metadata.Name, name) },
	} {
		var found []*seenObject
		for _, o := range m.pods {
			if match(o) && !o.stopping() && (ns == "" || m.space(ns) == o.Metadata.Namespace) && (m.component(o) == "" || m.component(o) == want) {
				found = append(found, o)
			}
		}
		if len(found) > 0 {
			return slices.MinFunc(found, better)
		}
	}
	return nil
}

func rank(o *seenObject) int {
	if o.ready() {
		return 1
	}
	return 0
}
