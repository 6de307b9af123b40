package gateway

import (
	"context"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// say writes the status, if it is not what is there.
func (t *term) say(ctx context.Context, in Inputs, plan Plan, done error, noted *notes) error {
	was := in.Gateway.Status
	if noted.version != "" && older(in.Gateway.ResourceVersion, noted.version) {
		was = noted.status // which is on its way
	}
	status := plan.Status(in, done)
	settleGateway(time.Now(), &was, &status)
	if equality.Semantic.DeepEqual(status.Addresses, was.Addresses) && equality.Semantic.DeepEqual(status.Listeners, was.Listeners) &&
		contains(was.Conditions, status.Conditions) {
		return nil
	}
	body, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&status)
	if err != nil {
		return fmt.Errorf("status: %w", err)
	}
	t.wrote.WithLabelValues("Gateway", "status").Inc()
	u := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": gatewayv1.GroupVersion.String(), "kind": "Gateway",
		"metadata": map[string]any{"namespace": in.Gateway.Namespace, "name": in.Gateway.Name, "uid": string(in.Gateway.UID)},
		"status":   body}}
	u, err = t.cfg.Client.Resource(gateways).Namespace(in.Gateway.Namespace).ApplyStatus(ctx, in.Gateway.Name, u,
		metav1.ApplyOptions{FieldManager: plan.Controller, Force: true})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("write status: %w", err)
	}
	noted.status, noted.version = status, u.GetResourceVersion()
	return nil
}

// contains reports whether all of some are among all.
func contains(all, some []metav1.Condition) bool {
	for _, c := range some {
		found := false
		for _, a := range all {
			found = found || equality.Semantic.DeepEqual(a, c)
		}
		if !found {
			return false
		}
	}
	return true
}

// class makes a GatewayClass of ours that is missing, and writes its status.
func (t *term) class(ctx context.Context, name string) error {
	if !t.watch.watched(t.watch.classes) {
		return nil // it comes back when there are GatewayClasses
	}
	obj, ok, err := t.watch.classes.GetStore().GetByKey(name)
	if err != nil {
		return err
	}
	if !ok {
		return t.makeClass(ctx, name)
	}
	c, ok := obj.(*gatewayv1.GatewayClass)
	if !ok || c.DeletionTimestamp != nil || !isOurs(c) {
		return nil
	}
	status := ClassStatus(c)
	settle(time.Now(), c.Status.Conditions, status.Conditions)
	if contains(c.Status.Conditions, status.Conditions) && equality.Semantic.DeepEqual(c.Status.SupportedFeatures, status.SupportedFeatures) {
		return nil
	}
	body, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&status)
	if err != nil {
		return fmt.Errorf("status: %w", err)
	}
	t.wrote.WithLabelValues("GatewayClass", "status").Inc()
	u := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": gatewayv1.GroupVersion.String(), "kind": "GatewayClass",
		"metadata": map[string]any{"name": name, "uid": string(c.UID)}, "status": body}}
	_, err = t.cfg.Client.Resource(gatewayClass).ApplyStatus(ctx, name, u,
		metav1.ApplyOptions{FieldManager: string(c.Spec.ControllerName), Force: true})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("write status of GatewayClass %s: %w", name, err)
	}
	return nil
}

func (t *term) makeClass(ctx context.Context, name string) error {
	controller, ok := classes()[name]
	if !ok {
		return nil
	}
	u := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": gatewayv1.GroupVersion.String(), "kind": "GatewayClass",
		"metadata": map[string]any{"name": name, "labels": map[string]any{"app.kubernetes.io/part-of": "culvert"}},
		"spec":     map[string]any{"controllerName": controller, "description": "waypoints of the mesh"}}}
	_, err := t.cfg.Client.Resource(gatewayClass).Create(ctx, u, metav1.CreateOptions{FieldManager: controller})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("make GatewayClass %s: %w", name, err)
	}
	return nil
}
