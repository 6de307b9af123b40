package apiserver

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
)

// Node writes on the node's object what the agent found out about the node. Its
// methods may be called from any goroutine, and each asks the API server.
type Node struct {
	name   string
	client typedcorev1.NodeInterface
}

// NewNode returns a writer for the node of that name. It asks nothing.
func NewNode(config *rest.Config, name string) (*Node, error) {
	client, err := typedcorev1.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("kubernetes client: %w", err)
	}
	return &Node{name: name, client: client.Nodes()}, nil
}

// SetCondition writes a condition: status is "True", "False" or "Unknown". The time
// of its transition stays when the status does.
func (n *Node) SetCondition(ctx context.Context, kind, status, reason, message string) error {
	node, err := n.client.Get(ctx, n.name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("condition %s of node %s: %w", kind, n.name, err)
	}
	now := metav1.NewTime(time.Now())
	c := corev1.NodeCondition{Type: corev1.NodeConditionType(kind), Status: corev1.ConditionStatus(status), Reason: reason, Message: message,
		LastHeartbeatTime: now, LastTransitionTime: now}
	i := slices.IndexFunc(node.Status.Conditions, func(o corev1.NodeCondition) bool { return o.Type == c.Type })
	if i >= 0 && node.Status.Conditions[i].Status == c.Status {
		c.LastTransitionTime = node.Status.Conditions[i].LastTransitionTime
	}
	return n.patchStatus(ctx, kind, c)
}

// RemoveCondition takes a condition off the node.
func (n *Node) RemoveCondition(ctx context.Context, kind string) error {
	return n.patchStatus(ctx, kind, map[string]any{"type": kind, "$patch": "delete"})
}

func (n *Node) patchStatus(ctx context.Context, kind string, condition any) error {
	raw, err := json.Marshal(map[string]any{"status": map[string]any{"conditions": []any{condition}}})
	if err != nil {
		return err
	}
	if _, err := n.client.PatchStatus(ctx, n.name, raw); err != nil {
		return fmt.Errorf("condition %s of node %s: %w", kind, n.name, err)
	}
	return nil
}

// RemoveTaints takes the taints with those keys off the node and returns the keys of
// those that it had. Somebody else's change in between is no failure: it is tried
// again with what is there then.
func (n *Node) RemoveTaints(ctx context.Context, keys []string) ([]string, error) {
	for {
		node, err := n.client.Get(ctx, n.name, metav1.GetOptions{})
		if err != nil {
			return nil, fmt.Errorf("taints of node %s: %w", n.name, err)
		}
		patch, removed, err := untaint(node.Spec.Taints, keys)
		if err != nil || len(removed) == 0 {
			return nil, err
		}
		_, err = n.client.Patch(ctx, n.name, types.JSONPatchType, patch, metav1.PatchOptions{})
		if err == nil {
			return removed, nil
		}
		// A test that fails is answered as an invalid patch.
		if !apierrors.IsConflict(err) && !apierrors.IsInvalid(err) || ctx.Err() != nil {
			return nil, fmt.Errorf("taints of node %s: %w", n.name, err)
		}
	}
}

// untaint is the patch that leaves out the taints with those keys, and their keys.
// It holds only while the taints are what they were.
func untaint(there []corev1.Taint, keys []string) (patch []byte, removed []string, err error) {
	left := []corev1.Taint{}
	for _, t := range there {
		if slices.Contains(keys, t.Key) {
			removed = append(removed, t.Key)
		} else {
			left = append(left, t)
		}
	}
	patch, err = json.Marshal([]map[string]any{
		{"op": "test", "path": "/spec/taints", "value": there},
		{"op": "replace", "path": "/spec/taints", "value": left},
	})
	return patch, removed, err
}
