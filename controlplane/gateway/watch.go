package gateway

import (
	"context"
	"fmt"
	"slices"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// Resources that are watched and not made.
var (
	gatewayGV     = schema.GroupVersion{Group: group, Version: "v1"}
	gateways      = gatewayGV.WithResource("gateways")
	gatewayClass  = gatewayGV.WithResource("gatewayclasses")
	configMaps    = schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}
	namespaces    = schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}
	definitions   = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	selectManaged = LabelManaged + "=" + ManagedMesh
)

// Names of indices.
const (
	byClass      = "class"
	byParameters = "parameters"
	byGateway    = "gateway"
)

// watches are what the plans depend on. Kinds of Gateway API are watched from when
// they are defined; of ConfigMaps and namespaces only the metadata is asked for,
// and of everything only what a plan reads is kept.
type watches struct {
	cfg     Config
	queue   workqueue.TypedInterface[item]
	deleted func(*Live)

	gateways, classes              cache.SharedIndexInformer
	configMaps, namespaces, define cache.SharedIndexInformer
	live                           []cache.SharedIndexInformer
	routes                         map[string]cache.SharedIndexInformer // by resource

	mu      sync.Mutex
	begin   func(i cache.SharedIndexInformer, then func()) // runs one; then is called when it knows what is there
	running map[cache.SharedIndexInformer]bool
	defines cache.ResourceEventHandlerRegistration // by which other kinds begin to be watched
}

func newWatches(cfg Config, queue workqueue.TypedInterface[item], deleted func(*Live)) *watches {
	w := &watches{cfg: cfg, queue: queue, deleted: deleted, running: map[cache.SharedIndexInformer]bool{}, routes: map[string]cache.SharedIndexInformer{}}
	w.gateways = w.objects(gateways, "", cache.Indexers{byClass: indexClass, byParameters: indexParameters})
	w.classes = w.objects(gatewayClass, "", nil)
	for _, k := range made() {
		w.live = append(w.live, w.objects(k.Resource, selectManaged, cache.Indexers{byGateway: indexLabel}))
	}
	for _, resource := range routeResources() {
		w.routes[resource] = w.objects(gatewayGV.WithResource(resource), "", cache.Indexers{byGateway: indexParents})
	}
	w.configMaps, w.namespaces, w.define = w.bare(configMaps, cache.Indexers{byClass: indexDefaults}), w.bare(namespaces, nil), w.bare(definitions, nil)
	return w
}

func (w *watches) objects(r schema.GroupVersionResource, selector string, by cache.Indexers) cache.SharedIndexInformer {
	if by == nil {
		by = cache.Indexers{}
	}
	return dynamicinformer.NewFilteredDynamicInformer(w.cfg.Client, r, metav1.NamespaceAll, 0, by,
		func(o *metav1.ListOptions) { o.LabelSelector = selector }).Informer()
}

func (w *watches) bare(r schema.GroupVersionResource, by cache.Indexers) cache.SharedIndexInformer {
	if by == nil {
		by = cache.Indexers{}
	}
	return metadatainformer.NewFilteredMetadataInformer(w.cfg.Metadata, r, metav1.NamespaceAll, 0, by, nil).Informer()
}

// start begins to watch. stop waits until nothing is watched any more; ctx has
// ended by then.
func (w *watches) start(ctx context.Context) (stop func(), err error) {
	var running sync.WaitGroup
	w.begin = func(i cache.SharedIndexInformer, then func()) {
		w.running[i] = true
		running.Go(func() { i.RunWithContext(ctx) })
		running.Go(func() {
			if cache.WaitForCacheSync(ctx.Done(), i.HasSynced) {
				then()
			}
		})
	}
	type watched struct {
		informer cache.SharedIndexInformer
		changed  func(obj any)
		trim     func(any) any
	}
	all := []watched{
		{w.gateways, w.gatewayChanged, w.trimGateway},
		{w.classes, w.classChanged, w.trimClass},
		{w.configMaps, w.configMapChanged, trimMeta(LabelDefaultsForClass)},
		{w.namespaces, w.namespaceChanged, trimMeta()},
		{w.define, w.defined, trimMeta(LabelRevision)},
	}
	for _, i := range w.live {
		all = append(all, watched{i, w.liveChanged, trimLive})
	}
	for _, i := range w.routes {
		all = append(all, watched{i, w.routeChanged, trimRoute})
	}
	for _, x := range all {
		if err := x.informer.SetTransform(func(obj any) (any, error) { return x.trim(obj), nil }); err != nil {
			return nil, fmt.Errorf("watch: %w", err)
		}
		h, err := x.informer.AddEventHandler(w.handler(x.changed))
		if err != nil {
			return nil, fmt.Errorf("watch: %w", err)
		}
		if x.informer == w.define {
			w.defines = h
		}
	}
	for _, i := range append(slices.Clone(w.live), w.configMaps, w.namespaces, w.define) {
		w.mu.Lock()
		w.begin(i, func() {})
		w.mu.Unlock()
	}
	return running.Wait, nil
}

// handler calls changed with every object that comes, goes, or was or is otherwise.
func (w *watches) handler(changed func(any)) cache.ResourceEventHandler {
	return cache.ResourceEventHandlerFuncs{
		AddFunc: changed,
		UpdateFunc: func(was, is any) {
			changed(was)
			changed(is)
		},
		DeleteFunc: func(obj any) {
			if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = gone.Obj
			}
			if l, ok := obj.(*Live); ok {
				w.deleted(l)
			}
			changed(obj)
		},
	}
}

// synced waits until everything is known that was there at the beginning.
func (w *watches) synced(ctx context.Context) bool {
	if !cache.WaitForCacheSync(ctx.Done(), w.defines.HasSynced) {
		return false
	}
	w.mu.Lock()
	var waits []cache.InformerSynced
	for i := range w.running {
		waits = append(waits, i.HasSynced)
	}
	w.mu.Unlock()
	return cache.WaitForCacheSync(ctx.Done(), waits...)
}

// defined begins to watch a kind once there is its definition. That of a kind that
// is defined no more finds nothing, until it is again.
func (w *watches) defined(obj any) {
	m, ok := obj.(*metav1.PartialObjectMetadata)
	if !ok {
		return
	}
	kinds := map[string]cache.SharedIndexInformer{
		gateways.GroupResource().String(): w.gateways, gatewayClass.GroupResource().String(): w.classes,
	}
	for resource, i := range w.routes {
		kinds[gatewayGV.WithResource(resource).GroupResource().String()] = i
	}
	i, ok := kinds[m.Name]
	if !ok {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.running[i] {
		return
	}
	w.begin(i, func() {
		if i == w.classes {
			w.ownClasses()
		}
	})
}

// ownClasses works on the classes that are there by themselves, which have to be
// made if they are not.
func (w *watches) ownClasses() {
	for class := range classes() {
		w.queue.Add(item{class: true, name: class})
	}
}

// watched reports whether a kind is, and its objects are known.
func (w *watches) watched(i cache.SharedIndexInformer) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.running[i] && i.HasSynced()
}

func (w *watches) gatewayChanged(obj any) {
	if m, ok := obj.(metav1.Object); ok {
		w.queue.Add(item{namespace: m.GetNamespace(), name: m.GetName()})
	}
}

func (w *watches) classChanged(obj any) {
	if c, ok := obj.(*gatewayv1.GatewayClass); ok {
		w.queue.Add(item{class: true, name: c.Name})
		w.all(byClass, c.Name)
	}
}

// all works on all Gateways that an index has under a key.
func (w *watches) all(index, key string) {
	list, err := w.gateways.GetIndexer().ByIndex(index, key)
	if err != nil {
		return // no such index
	}
	for _, g := range list {
		w.gatewayChanged(g)
	}
}

func (w *watches) configMapChanged(obj any) {
	m, ok := obj.(*metav1.PartialObjectMetadata)
	if !ok {
		return
	}
	w.all(byParameters, m.Namespace+"/"+m.Name)
	if class := m.Labels[LabelDefaultsForClass]; class != "" && m.Namespace == w.cfg.Options.RootNamespace {
		w.all(byClass, class)
	}
}

// namespaceChanged works on the Gateways of the namespace, and on those that
// choose namespaces by their labels.
func (w *watches) namespaceChanged(obj any) {
	m, ok := obj.(*metav1.PartialObjectMetadata)
	if !ok {
		return
	}
	for _, obj := range w.gateways.GetStore().List() {
		g, ok := obj.(*gatewayv1.Gateway)
		if ok && (g.Namespace == m.Name || slices.ContainsFunc(g.Spec.Listeners, choosesByLabels)) {
			w.gatewayChanged(g)
		}
	}
}

func choosesByLabels(l gatewayv1.Listener) bool {
	return l.AllowedRoutes != nil && l.AllowedRoutes.Namespaces != nil && l.AllowedRoutes.Namespaces.Selector != nil
}

func (w *watches) liveChanged(obj any) {
	if l, ok := obj.(*Live); ok {
		w.queue.Add(item{namespace: l.Namespace, name: l.Labels[LabelGatewayName]})
	}
}

func (w *watches) routeChanged(obj any) {
	r, ok := obj.(*Route)
	if !ok {
		return
	}
	for _, ref := range r.Parents {
		ns, name, _ := parentGateway(r.Namespace, ref)
		w.queue.Add(item{namespace: ns, name: name})
	}
}
