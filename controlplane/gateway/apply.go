package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// do applies and removes. The first error ends it: the rest may depend on what
// failed.
func (t *term) do(ctx context.Context, in Inputs, plan Plan, noted *notes) error {
	for _, o := range plan.Apply {
		if err := t.apply(ctx, in, plan.Controller, o, noted); err != nil {
			return fmt.Errorf("apply %s %s: %w", o.Kind.Kind, o.Name, err)
		}
	}
	for _, l := range plan.Remove {
		if err := t.remove(ctx, l); err != nil {
			return fmt.Errorf("delete %s %s: %w", l.Kind, l.Name, err)
		}
	}
	return nil
}

// apply makes an object what it is to be, unless it is as it was after it was
// applied the last time. Only what is known as ours is forced: what somebody else has
// made since we looked is a conflict, and seen for what it is the next time.
func (t *term) apply(ctx context.Context, in Inputs, manager string, o Object, noted *notes) error {
	key := o.Kind.Kind + " " + o.Name
	desired := sum(manager, o.Body)
	live := find(in.Live, o.Kind, o.Name)
	if last, ok := noted.applied[key]; ok && last.desired == desired && t.isApplied(in, last, o, live, noted) {
		return nil
	}
	t.wrote.WithLabelValues(o.Kind.Kind, "apply").Inc()
	u, err := t.cfg.Client.Resource(o.Kind.Resource).Namespace(in.Gateway.Namespace).Apply(ctx, o.Name,
		&unstructured.Unstructured{Object: o.Body}, metav1.ApplyOptions{FieldManager: manager, Force: live != nil})
	if err != nil {
		return err
	}
	noted.applied[key] = applied{desired, fingerprint(u), u.GetResourceVersion(), time.Now()}
	switch {
	case live == nil:
		t.cfg.Log.Info("made for a Gateway", "kind", o.Kind.Kind, "namespace", in.Gateway.Namespace, "name", o.Name)
	case live.ResourceVersion != u.GetResourceVersion():
		t.cfg.Log.Info("changed for a Gateway", "kind", o.Kind.Kind, "namespace", in.Gateway.Namespace, "name", o.Name)
	}
	return nil
}

// isApplied reports whether nobody has changed an object since it was applied.
func (t *term) isApplied(in Inputs, last applied, o Object, live *Live, noted *notes) bool {
	if live == nil {
		gone, ok := noted.gone.Load(o.Kind.Kind + " " + o.Name)
		wait := watchDelay - time.Since(last.at)
		if ok && !older(gone.(string), last.version) || wait <= 0 {
			return false
		}
		t.queue.AddAfter(item{namespace: in.Gateway.Namespace, name: in.Gateway.Name}, wait)
		return true // what we have made is on its way
	}
	if older(live.ResourceVersion, last.version) {
		return true // and so is the change that we have made
	}
	return last.print == live.Print && scaledAsAsked(o, live)
}

// scaledAsAsked reports whether there are as many replicas as parameters ask for,
// if they do.
func scaledAsAsked(o Object, live *Live) bool {
	n, ok, err := unstructured.NestedFieldNoCopy(o.Body, "spec", "replicas")
	if !ok || err != nil || o.Kind != kindDeployment {
		return true
	}
	f, ok := n.(float64)
	return !ok || int32(f) == live.Replicas
}

func sum(manager string, body map[string]any) uint64 {
	h := fnv.New64a()
	if err := json.NewEncoder(h).Encode([]any{manager, body}); err != nil { // maps by key
		return 0
	}
	return h.Sum64()
}

// remove deletes an object, if it is still the one that was seen.
func (t *term) remove(ctx context.Context, l *Live) error {
	for _, k := range made() {
		if k.Kind != l.Kind {
			continue
		}
		background := metav1.DeletePropagationBackground
		err := t.cfg.Client.Resource(k.Resource).Namespace(l.Namespace).Delete(ctx, l.Name, metav1.DeleteOptions{
			Preconditions: &metav1.Preconditions{UID: &l.UID}, PropagationPolicy: &background})
		if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
			return nil // gone, and another one may be there
		}
		if err != nil {
			return err
		}
		t.wrote.WithLabelValues(l.Kind, "delete").Inc()
		t.cfg.Log.Info("removed: its Gateway wants it no more", "kind", l.Kind, "namespace", l.Namespace, "name", l.Name)
	}
	return nil
}
