package cluster

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/culvert-mesh/culvert/pkg/folder"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

// Name is the name of an object of a kind that is clear from where it stands.
type Name struct{ Namespace, Name string }

// String returns "namespace/name".
func (n Name) String() string { return n.Namespace + "/" + n.Name }

// Compare orders names by namespace, then by name.
func (n Name) Compare(o Name) int {
	if c := strings.Compare(n.Namespace, o.Namespace); c != 0 {
		return c
	}
	return strings.Compare(n.Name, o.Name)
}

// Objects are those of a user's objects that the cluster acts on.
type Objects struct {
	Namespaces  map[string]*corev1.Namespace
	Pods        map[Name]*corev1.Pod
	Deployments map[Name]*appsv1.Deployment
	Services    map[Name]*corev1.Service
	Gateways    map[Name]*gatewayv1.Gateway

	// Idle are objects that make pods in a Kubernetes cluster and none here.
	Idle []folder.Problem
}

func newObjects() *Objects {
	return &Objects{
		Namespaces:  map[string]*corev1.Namespace{},
		Pods:        map[Name]*corev1.Pod{},
		Deployments: map[Name]*appsv1.Deployment{},
		Services:    map[Name]*corev1.Service{},
		Gateways:    map[Name]*gatewayv1.Gateway{},
	}
}

// Decode reads the objects of a snapshot. An object that cannot be decoded keeps
// the form it had in prev (nil = none) and is a Problem.
func Decode(snap *folder.Snapshot, prev *Objects) (*Objects, []folder.Problem) {
	if prev == nil {
		prev = newObjects()
	}
	objs := newObjects()
	var problems []folder.Problem
	for _, o := range snap.Sorted() {
		key := Name{o.Namespace, o.Name}
		var err error
		switch o.Kind {
		case "Namespace":
			err = decode(o, o.Name, objs.Namespaces, prev.Namespaces)
		case "Pod":
			err = decode(o, key, objs.Pods, prev.Pods)
		case "Deployment":
			err = decode(o, key, objs.Deployments, prev.Deployments)
		case "Service":
			err = decode(o, key, objs.Services, prev.Services)
		case "Gateway":
			if o.Key().Group == gatewayv1.GroupName {
				err = decode(o, key, objs.Gateways, prev.Gateways)
			}
		case "ReplicaSet", "StatefulSet", "DaemonSet", "Job", "CronJob":
			if g := o.Key().Group; g == "apps" || g == "batch" {
				objs.Idle = append(objs.Idle, idle(o))
			}
		}
		if err != nil {
			problems = append(problems, problemOf(o, err))
		}
	}
	return objs, problems
}

// decode puts o into the map, or what it was before when it is no longer valid.
func decode[K comparable, T any](o *folder.Object, key K, into, prev map[K]*T) error {
	raw, err := o.JSON()
	if err == nil {
		v := new(T)
		if err = json.Unmarshal(raw, v); err == nil {
			into[key] = v
			return nil
		}
	}
	if old, ok := prev[key]; ok {
		into[key] = old
	}
	return err
}

func problemOf(o *folder.Object, err error) folder.Problem {
	p := folder.Problem{Object: o.Key().String(), Reason: reason.InvalidValue, Detail: err.Error()}
	var typeErr *json.UnmarshalTypeError
	if errors.As(err, &typeErr) {
		p.Field = typeErr.Field
		p.Detail = "want " + typeErr.Type.String() + ", got " + typeErr.Value
	}
	p.File, p.Line = o.Locate(p.Field)
	return p
}

func idle(o *folder.Object) folder.Problem {
	p := folder.Problem{Object: o.Key().String(), Field: "kind", Reason: reason.Unsupported,
		Detail: "no pods are made of it; Pods and Deployments run here"}
	p.File, p.Line = o.Locate(p.Field)
	return p
}

// sorted returns a map's keys in order.
func sorted[T any](m map[Name]T) []Name {
	keys := make([]Name, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, Name.Compare)
	return keys
}
