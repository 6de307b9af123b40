package gateway

import (
	"encoding/json"
	"fmt"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Kind is a kind of object that is made for Gateways.
type Kind struct {
	Kind     string
	Resource schema.GroupVersionResource
}

// The kinds, in the order in which objects are applied.
var (
	kindServiceAccount = Kind{"ServiceAccount", schema.GroupVersionResource{Version: "v1", Resource: "serviceaccounts"}}
	kindService        = Kind{"Service", schema.GroupVersionResource{Version: "v1", Resource: "services"}}
	kindDeployment     = Kind{"Deployment", schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "deployments"}}
	kindAutoscaler     = Kind{"HorizontalPodAutoscaler", schema.GroupVersionResource{Group: "autoscaling", Version: "v2", Resource: "horizontalpodautoscalers"}}
	kindDisruption     = Kind{"PodDisruptionBudget", schema.GroupVersionResource{Group: "policy", Version: "v1", Resource: "poddisruptionbudgets"}}
)

// made are the kinds of everything that is made.
func made() []Kind {
	return []Kind{kindServiceAccount, kindService, kindDeployment, kindAutoscaler, kindDisruption}
}

// Object is one object as it is applied: only what somebody here decides.
type Object struct {
	Kind Kind
	Name string
	Body map[string]any
}

// assembly makes the objects of one Gateway and collects them.
type assembly struct {
	gateway Gateway
	patches patches
	live    *Live // Deployment that is there; may be nil
	objects []Object
}

// assemble returns what runs g. The error is for the user.
func assemble(g Gateway, o Options, p patches, deployment *Live) ([]Object, error) {
	a := &assembly{gateway: g, patches: p, live: deployment}
	base := g.objects(o)
	host(base.Deployment)
	steps := []func(*Objects) error{a.account, a.service, a.deployment, a.autoscaler, a.disruption}
	for _, step := range steps {
		if err := step(base); err != nil {
			return nil, err
		}
	}
	return a.objects, nil
}

func (a *assembly) account(base *Objects) error {
	if base.ServiceAccount == nil {
		return nil
	}
	was := base.ServiceAccount.ObjectMeta
	if err := overlay(a.patches, keyServiceAccount, base.ServiceAccount); err != nil {
		return err
	}
	a.restore(&base.ServiceAccount.ObjectMeta, was)
	return a.add(kindServiceAccount, was.Name, base.ServiceAccount)
}

func (a *assembly) service(base *Objects) error {
	was := base.Service.ObjectMeta
	if err := overlay(a.patches, keyService, base.Service); err != nil {
		return err
	}
	a.restore(&base.Service.ObjectMeta, was)
	return a.add(kindService, was.Name, base.Service)
}

func (a *assembly) deployment(base *Objects) error {
	d := base.Deployment
	was := d.ObjectMeta
	if err := overlay(a.patches, keyDeployment, d); err != nil {
		return err
	}
	a.restore(&d.ObjectMeta, was)
	d.Spec.Selector = &metav1.LabelSelector{MatchLabels: a.gateway.selector()}
	a.relabel(&d.Spec.Template.ObjectMeta)
	tellGrace(d)
	if a.patches.has(keyAutoscaler) {
		d.Spec.Replicas = a.held()
	}
	return a.add(kindDeployment, was.Name, d)
}

// held is the number of replicas to go on asking for beside an autoscaler: what
// is there, as long as nobody but us has ever said a number. To say none at that
// moment would scale down to one.
func (a *assembly) held() *int32 {
	if a.live == nil || !a.live.Sole {
		return nil
	}
	return &a.live.Replicas
}

func (a *assembly) autoscaler(*Objects) error {
	if !a.patches.has(keyAutoscaler) {
		return nil
	}
	name := a.gateway.deployed()
	h := &autoscalingv2.HorizontalPodAutoscaler{TypeMeta: typeMeta("autoscaling/v2", kindAutoscaler.Kind), ObjectMeta: a.gateway.meta(name)}
	h.Spec.MaxReplicas = 1 // as upstream's, for a patch that does not say
	was := h.ObjectMeta
	if err := overlay(a.patches, keyAutoscaler, h); err != nil {
		return err
	}
	a.restore(&h.ObjectMeta, was)
	h.Spec.ScaleTargetRef = autoscalingv2.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: kindDeployment.Kind, Name: name}
	return a.add(kindAutoscaler, name, h)
}

func (a *assembly) disruption(*Objects) error {
	if !a.patches.has(keyDisruption) {
		return nil
	}
	name := a.gateway.deployed()
	b := &policyv1.PodDisruptionBudget{TypeMeta: typeMeta("policy/v1", kindDisruption.Kind), ObjectMeta: a.gateway.meta(name)}
	was := b.ObjectMeta
	if err := overlay(a.patches, keyDisruption, b); err != nil {
		return err
	}
	a.restore(&b.ObjectMeta, was)
	b.Spec.Selector = &metav1.LabelSelector{MatchLabels: a.gateway.selector()}
	if b.Spec.MinAvailable == nil && b.Spec.MaxUnavailable == nil {
		one := intstr.FromInt32(1)
		b.Spec.MaxUnavailable = &one
	}
	return a.add(kindDisruption, name, b)
}

// restore takes back what a patch must not change: which object it is, and whose.
func (a *assembly) restore(m *metav1.ObjectMeta, was metav1.ObjectMeta) {
	m.Name, m.Namespace, m.OwnerReferences = was.Name, was.Namespace, was.OwnerReferences
	a.relabel(m)
}

// relabel gives an object the labels by which it is found.
func (a *assembly) relabel(m *metav1.ObjectMeta) {
	if m.Labels == nil {
		m.Labels = map[string]string{}
	}
	m.Labels[LabelGatewayName], m.Labels[LabelGatewayClass], m.Labels[LabelManaged] = a.gateway.Name, a.gateway.Class, ManagedMesh
}

// add notes an object without what Go adds to it: fields that it has only because
// its type has them would belong to us.
func (a *assembly) add(k Kind, name string, typed any) error {
	raw, err := json.Marshal(typed)
	if err != nil {
		return fmt.Errorf("%s %s: %w", k.Kind, name, err)
	}
	var body map[string]any
	if err := json.Unmarshal(raw, &body); err != nil {
		return fmt.Errorf("%s %s: %w", k.Kind, name, err)
	}
	delete(body, "status")
	if spec, ok := body["spec"].(map[string]any); ok {
		if s, ok := spec["strategy"].(map[string]any); ok && len(s) == 0 {
			delete(spec, "strategy")
		}
	}
	a.objects = append(a.objects, Object{Kind: k, Name: name, Body: body})
	return nil
}
