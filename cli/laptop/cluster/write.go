package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// object is any object as the tree that is written to a file.
type object = map[string]any

// Objects returns what controllers made, by file name: pods of Deployments,
// what runs Gateways, the nodes.
func (c *Cluster) Objects() map[string]any {
	out := map[string]any{}
	for i, name := range c.nodes {
		out[fileName("node", "", name)] = nodeObject(name, i+1)
	}
	for _, p := range c.Pods() {
		if p.Owner != (Name{}) {
			out[fileName("pod", p.Name.Namespace, p.Name.Name)] = p.manifest()
		}
	}
	for n, r := range c.rendered {
		s := r.objects.Service.DeepCopy()
		s.Spec.ClusterIPs = texts(c.addrs(n, s))
		if len(s.Spec.ClusterIPs) > 0 {
			s.Spec.ClusterIP = s.Spec.ClusterIPs[0]
		}
		out[fileName("service", n.Namespace, n.Name)] = s
		out[fileName("deployment", n.Namespace, n.Name)] = r.objects.Deployment
		out[fileName("serviceaccount", n.Namespace, n.Name)] = r.objects.ServiceAccount
	}
	return out
}

// Patches returns what the cluster adds to the user's own objects, by file name:
// addresses of services, node and status of pods, addresses of Gateways.
func (c *Cluster) Patches() map[string]any {
	out := map[string]any{}
	for n, s := range c.objects.Services {
		addrs := c.addrs(n, s)
		if len(addrs) == 0 || !wantsVIP(s) {
			continue
		}
		out[fileName("service", n.Namespace, n.Name)] = patch("v1", "Service", n, object{
			"spec": object{"clusterIP": addrs[0].String(), "clusterIPs": texts(addrs)},
		})
	}
	for _, p := range c.Pods() {
		if p.Owner == (Name{}) {
			out[fileName("pod", p.Name.Namespace, p.Name.Name)] = p.patch()
		}
	}
	for n, r := range c.rendered {
		addrs := c.addrs(n, r.objects.Service)
		list := []object{}
		for _, a := range addrs {
			list = append(list, object{"type": string(gatewayv1.IPAddressType), "value": a.String()})
		}
		host := n.Name + "." + n.Namespace + ".svc.cluster.local"
		list = append(list, object{"type": string(gatewayv1.HostnameAddressType), "value": host})
		out[fileName("gateway", n.Namespace, n.Name)] = patch(gatewayv1.GroupVersion.String(), "Gateway", n, object{
			"status": object{"addresses": list},
		})
	}
	return out
}

func patch(version, kind string, n Name, rest object) object {
	o := object{"apiVersion": version, "kind": kind, "metadata": object{"namespace": n.Namespace, "name": n.Name}}
	maps.Copy(o, rest)
	return o
}

// fileName names an object's file. Names of objects have no underscore.
func fileName(kind, ns, name string) string {
	return strings.Trim(kind+"_"+ns+"_"+name, "_") + ".json"
}

func nodeObject(name string, number int) *corev1.Node {
	return &corev1.Node{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
			corev1.LabelHostname: name, corev1.LabelTopologyRegion: "laptop", corev1.LabelTopologyZone: fmt.Sprintf("zone-%d", number),
		}},
	}
}

// manifest is the pod as the API server would show it.
func (p *Pod) manifest() *corev1.Pod {
	o := p.Object.DeepCopy()
	o.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}
	o.Status = p.podStatus()
	if p.Stopping {
		now := metav1.NewTime(p.Created)
		o.DeletionTimestamp = &now
	}
	return o
}

// patch is what manifest adds to a pod that the user wrote.
func (p *Pod) patch() object {
	meta := object{"namespace": p.Name.Namespace, "name": p.Name.Name, "uid": p.UID,
		"creationTimestamp": p.Created.UTC().Format(time.RFC3339)}
	if p.Stopping {
		meta["deletionTimestamp"] = meta["creationTimestamp"]
	}
	return object{"apiVersion": "v1", "kind": "Pod", "metadata": meta,
		"spec": object{"nodeName": p.Node}, "status": p.podStatus()}
}

func (p *Pod) podStatus() corev1.PodStatus {
	st := corev1.PodStatus{Phase: corev1.PodPending, HostIP: "", Message: p.status.Message}
	for _, a := range p.Addrs.Slice() {
		st.PodIPs = append(st.PodIPs, corev1.PodIP{IP: a.String()})
	}
	st.PodIP = p.Addrs.V4.String()
	if p.status.Running {
		st.Phase = corev1.PodRunning
	}
	ready := corev1.ConditionFalse
	if p.status.Ready {
		ready = corev1.ConditionTrue
	}
	st.Conditions = []corev1.PodCondition{
		{Type: corev1.PodScheduled, Status: corev1.ConditionTrue},
		{Type: corev1.ContainersReady, Status: ready},
		{Type: corev1.PodReady, Status: ready},
	}
	for _, ctr := range p.Object.Spec.Containers[:min(1, len(p.Object.Spec.Containers))] {
		st.ContainerStatuses = []corev1.ContainerStatus{{Name: ctr.Name, Image: ctr.Image, Ready: p.status.Ready,
			RestartCount: int32(p.status.Restarts)}}
	}
	return st
}

func texts[T fmt.Stringer](list []T) []string {
	out := make([]string, len(list))
	for i, v := range list {
		out[i] = v.String()
	}
	return out
}

// Folder writes a set of objects to files, and only what changed since.
type Folder struct {
	dir  string
	have map[string]string
}

// NewFolder returns a Folder that writes into dir, which must exist.
func NewFolder(dir string) *Folder { return &Folder{dir: dir, have: map[string]string{}} }

// Write makes the folder hold those objects: every file appears and changes
// atomically, and files of objects that are gone are removed.
func (f *Folder) Write(objects map[string]any) error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(objects)) {
		raw, err := json.Marshal(objects[name])
		if err == nil && f.have[name] != string(raw) {
			if err = f.replace(name, raw); err == nil {
				f.have[name] = string(raw)
			}
		}
		errs = append(errs, err)
	}
	for name := range f.have {
		if _, ok := objects[name]; ok {
			continue
		}
		if err := os.Remove(filepath.Join(f.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
			continue
		}
		delete(f.have, name)
	}
	return errors.Join(errs...)
}

// replace writes to a name that readers of the folder skip, and renames.
func (f *Folder) replace(name string, raw []byte) error {
	tmp := filepath.Join(f.dir, "."+name)
	if err := os.WriteFile(tmp, raw, 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(f.dir, name))
}
