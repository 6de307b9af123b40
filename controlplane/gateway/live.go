package gateway

import (
	"encoding/json"
	"hash/fnv"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
)

// Live is what is kept of an object that is there.
type Live struct {
	metav1.ObjectMeta // name, namespace, labels, owners
	Kind              string

	// Print stands for everything of the object that is not status and that nobody
	// scales: two prints differ if somebody has changed it.
	Print uint64

	// Of a Deployment.
	Replicas  int32
	Sole      bool // nobody but the gateway controller has said how many replicas
	Observed  bool // its controller has seen its last change
	Available int32
	Trouble   string // why it does not get on, in its controller's words

	// Of a Service.
	IPs []string // of its own, and then those of its load balancer
}

// Owned reports whether the object belongs to the Gateway with that UID.
func (l *Live) Owned(uid types.UID) bool {
	return slices.ContainsFunc(l.OwnerReferences, func(o metav1.OwnerReference) bool { return o.UID == uid })
}

// Trim returns what is kept of an object. managers are the field managers that are
// the gateway controller.
func Trim(u *unstructured.Unstructured, managers ...string) *Live {
	l := &Live{Kind: u.GetKind(), Print: fingerprint(u)}
	l.Name, l.Namespace, l.UID = u.GetName(), u.GetNamespace(), u.GetUID()
	l.ResourceVersion, l.DeletionTimestamp = u.GetResourceVersion(), u.GetDeletionTimestamp()
	l.Labels, l.OwnerReferences = u.GetLabels(), u.GetOwnerReferences()
	switch l.Kind {
	case kindDeployment.Kind:
		l.trimDeployment(u, managers)
	case kindService.Kind:
		l.trimService(u)
	}
	return l
}

func (l *Live) trimDeployment(u *unstructured.Unstructured, managers []string) {
	number := func(fields ...string) int64 {
		n, _, _ := unstructured.NestedInt64(u.Object, fields...) // 0 when it is absent
		return n
	}
	l.Replicas, l.Available = int32(number("spec", "replicas")), int32(number("status", "availableReplicas"))
	l.Observed = number("status", "observedGeneration") >= u.GetGeneration()
	l.Sole = sole(u, managers)
	list, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	for _, c := range list {
		c, _ := c.(map[string]any)
		bad := map[any]any{"ReplicaFailure": "True", "Progressing": "False", "Available": "False"}
		if c["status"] != nil && c["status"] == bad[c["type"]] && l.Trouble == "" {
			l.Trouble, _ = c["message"].(string)
		}
		if c["type"] == "ReplicaFailure" && c["status"] == "True" {
			l.Trouble, _ = c["message"].(string) // says most
		}
	}
}

// sole reports whether spec.replicas was set, and only by managers.
func sole(u *unstructured.Unstructured, managers []string) bool {
	set := false
	for _, m := range u.GetManagedFields() {
		if m.FieldsV1 == nil || !strings.Contains(string(m.FieldsV1.GetRawBytes()), `"f:replicas"`) || m.Subresource == "status" {
			continue
		}
		if !slices.Contains(managers, m.Manager) {
			return false
		}
		set = true
	}
	return set
}

func (l *Live) trimService(u *unstructured.Unstructured) {
	l.IPs, _, _ = unstructured.NestedStringSlice(u.Object, "spec", "clusterIPs")
	if ip, _, _ := unstructured.NestedString(u.Object, "spec", "clusterIP"); len(l.IPs) == 0 && ip != "" {
		l.IPs = []string{ip}
	}
	ingress, _, _ := unstructured.NestedSlice(u.Object, "status", "loadBalancer", "ingress")
	for _, i := range ingress {
		i, _ := i.(map[string]any)
		if ip, ok := i["ip"].(string); ok {
			l.IPs = append(l.IPs, ip)
		}
	}
}

// fingerprint is a hash of what a user or a program could have changed.
func fingerprint(u *unstructured.Unstructured) uint64 {
	body := map[string]any{}
	for k, v := range u.Object {
		if k != "status" && k != "metadata" {
			body[k] = v
		}
	}
	if spec, ok := body["spec"].(map[string]any); ok {
		rest := map[string]any{}
		for k, v := range spec {
			if k != "replicas" {
				rest[k] = v
			}
		}
		body["spec"] = rest
	}
	notes := map[string]string{}
	for k, v := range u.GetAnnotations() {
		if k != "deployment.kubernetes.io/revision" { // its controller counts
			notes[k] = v
		}
	}
	body["meta"] = []any{u.GetUID(), u.GetLabels(), notes, u.GetOwnerReferences()}
	raw, err := json.Marshal(body) // maps by key
	if err != nil {
		return 0
	}
	h := fnv.New64a()
	_, _ = h.Write(raw)
	return h.Sum64()
}
