package kube

import (
	"encoding/json"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// custom is a custom resource whose spec and status are decoded by whoever knows it.
type custom struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              json.RawMessage `json:"spec"`
	Status            json.RawMessage `json:"status"`
}

// DeepCopyObject implements runtime.Object.
func (c *custom) DeepCopyObject() runtime.Object { return c.copy() }

func (c *custom) copy() *custom {
	out := &custom{TypeMeta: c.TypeMeta, Spec: slices.Clone(c.Spec), Status: slices.Clone(c.Status)}
	c.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	return out
}

// customList is a list of them.
type customList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata"`
	Items           []custom `json:"items"`
}

// DeepCopyObject implements runtime.Object.
func (l *customList) DeepCopyObject() runtime.Object {
	out := &customList{TypeMeta: l.TypeMeta, Items: make([]custom, len(l.Items))}
	l.ListMeta.DeepCopyInto(&out.ListMeta)
	for i := range l.Items {
		out.Items[i] = *l.Items[i].copy()
	}
	return out
}
