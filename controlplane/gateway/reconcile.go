package gateway

import (
	"context"
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/tools/cache"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// gateway makes the plan of one Gateway and carries it out:
//
//	gather   what the plan depends on, from what is watched
//	plan     MakePlan; once more when something foreign is in its place
//	do       apply, and then remove
//	say      the status, also when doing failed
func (t *term) gateway(ctx context.Context, namespace, name string) error {
	obj, ok, err := t.watch.gateways.GetStore().GetByKey(namespace + "/" + name)
	if err != nil {
		return err
	}
	gw, is := obj.(*gatewayv1.Gateway)
	if !ok || !is || gw.DeletionTimestamp != nil {
		t.forget(namespace + "/" + name)
		return nil // what it had goes by its owner references
	}
	in, err := t.gather(ctx, gw)
	if err != nil {
		return err
	}
	plan := MakePlan(in)
	if in.Foreign, err = t.foreign(ctx, in, plan); err != nil {
		return err
	}
	if len(in.Foreign) > 0 {
		plan = MakePlan(in)
	}
	noted := t.of(namespace + "/" + name)
	done := t.do(ctx, in, plan, noted)
	if plan.Controller == "" || apierrors.HasStatusCause(done, corev1.NamespaceTerminatingCause) {
		return done
	}
	if plan.Unmanaged && plan.unusable(in) != "" {
		t.queue.AddAfter(item{namespace: namespace, name: name}, hostnameCheck)
	}
	return errors.Join(done, t.say(ctx, in, plan, done, noted))
}

// gather collects what the plan of a Gateway depends on.
func (t *term) gather(ctx context.Context, gw *gatewayv1.Gateway) (Inputs, error) {
	in := Inputs{Gateway: gw, Options: t.cfg.Options, Hosts: map[string]bool{}, Namespace: t.labels(gw.Namespace), Labels: t.labels}
	if obj, ok, _ := t.watch.classes.GetStore().GetByKey(string(gw.Spec.GatewayClassName)); ok {
		in.Class, _ = obj.(*gatewayv1.GatewayClass)
	}
	key := gw.Namespace + "/" + gw.Name
	for _, informer := range t.watch.live {
		each(informer, byGateway, key, func(l *Live) { in.Live = append(in.Live, l) })
	}
	for _, informer := range t.watch.routes {
		each(informer, byGateway, key, func(r *Route) { in.Routes = append(in.Routes, r) })
	}
	var err error
	if name, named, wrong := ParametersOf(gw); named && wrong == nil {
		if in.Parameters, err = t.config(ctx, gw.Namespace, name); err != nil {
			return in, err
		}
	}
	if in.Defaults, err = t.defaults(ctx, string(gw.Spec.GatewayClassName)); err != nil {
		return in, err
	}
	for _, a := range gw.Spec.Addresses {
		if addressType(a.Type) == gatewayv1.HostnameAddressType {
			if in.Hosts[a.Value], err = t.serviceExists(ctx, gw.Namespace, a.Value); err != nil {
				return in, err
			}
		}
	}
	return in, nil
}

// each calls f with the objects that an index has under a key.
func each[T any](i cache.SharedIndexInformer, index, key string, f func(*T)) {
	list, err := i.GetIndexer().ByIndex(index, key)
	if err != nil {
		return // no such index
	}
	for _, obj := range list {
		if o, ok := obj.(*T); ok {
			f(o)
		}
	}
}

// labels returns those of a namespace, nil when there is none.
func (t *term) labels(namespace string) map[string]string {
	obj, ok, _ := t.watch.namespaces.GetStore().GetByKey(namespace)
	if !ok {
		return nil
	}
	if m, ok := obj.(*metav1.PartialObjectMetadata); ok && m.Labels != nil {
		return m.Labels
	}
	return map[string]string{}
}

// config returns a ConfigMap, nil when there is none. It is read when it is not
// the one that was read before.
func (t *term) config(ctx context.Context, namespace, name string) (*corev1.ConfigMap, error) {
	key := namespace + "/" + name
	obj, ok, _ := t.watch.configMaps.GetStore().GetByKey(key)
	m, is := obj.(*metav1.PartialObjectMetadata)
	t.mu.Lock()
	have := t.configs[key]
	if !ok || !is {
		delete(t.configs, key)
	}
	t.mu.Unlock()
	if !ok || !is {
		return nil, nil
	}
	if have != nil && have.UID == m.UID && have.ResourceVersion == m.ResourceVersion {
		return have, nil
	}
	u, err := t.cfg.Client.Resource(configMaps).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read ConfigMap %s: %w", key, err)
	}
	cm := &corev1.ConfigMap{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, cm); err != nil {
		return nil, fmt.Errorf("read ConfigMap %s: %w", key, err)
	}
	cm.ManagedFields = nil
	t.mu.Lock()
	t.configs[key] = cm
	t.mu.Unlock()
	return cm, nil
}

// defaults returns the parameters of a class, nil when there are none.
func (t *term) defaults(ctx context.Context, class string) (*corev1.ConfigMap, error) {
	var list []*corev1.ConfigMap
	each(t.watch.configMaps, byClass, class, func(m *metav1.PartialObjectMetadata) {
		if m.Namespace == t.cfg.Options.RootNamespace {
			list = append(list, &corev1.ConfigMap{ObjectMeta: m.ObjectMeta})
		}
	})
	best := defaultsFor(class, list)
	if best == nil {
		return nil, nil
	}
	return t.config(ctx, best.Namespace, best.Name)
}

// serviceExists reports whether a hostname is that of a Service.
func (t *term) serviceExists(ctx context.Context, namespace, host string) (bool, error) {
	name := host
	if parts := strings.SplitN(host, ".", 4); len(parts) >= 3 && parts[2] == "svc" {
		name, namespace = parts[0], parts[1]
	} else if strings.Contains(host, ".") {
		return false, nil
	}
	if len(validation.IsDNS1123Label(name))+len(validation.IsDNS1123Label(namespace)) > 0 {
		return false, nil // no Service is called so; a path may be
	}
	m, err := t.metadata(ctx, kindService, namespace, name)
	return m != nil, err
}

// metadata returns that of an object, nil when there is none.
func (t *term) metadata(ctx context.Context, k Kind, namespace, name string) (*metav1.PartialObjectMetadata, error) {
	m, err := t.cfg.Metadata.Resource(k.Resource).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for %s %s: %w", k.Kind, name, err)
	}
	return m, nil
}

// foreign names the objects of a plan in whose places something stands that was
// not made for the Gateway. Only what is not known as ours is asked for.
func (t *term) foreign(ctx context.Context, in Inputs, plan Plan) (names []string, _ error) {
	for _, o := range plan.Apply {
		if find(in.Live, o.Kind, o.Name) != nil {
			continue
		}
		m, err := t.metadata(ctx, o.Kind, in.Gateway.Namespace, o.Name)
		if err != nil {
			return nil, err
		}
		if m != nil && (m.Labels[LabelManaged] != ManagedMesh || m.Labels[LabelGatewayName] != in.Gateway.Name) {
			names = append(names, o.Kind.Kind+" "+o.Name)
		}
	}
	return names, nil
}
