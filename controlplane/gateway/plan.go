package gateway

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// Controllers of the classes, as GatewayClasses name them. They are the field
// managers of what is applied for their Gateways.
const (
	ControllerIstio   = "istio.io/mesh-controller"
	ControllerCulvert = "culvert-mesh.github.io/mesh-controller"
)

// Controllers are the names under which we are known.
func Controllers() []string { return []string{ControllerIstio, ControllerCulvert} }

// classes are the GatewayClasses that are there by themselves.
func classes() map[string]string {
	return map[string]string{ClassIstioWaypoint: ControllerIstio, ClassCulvertWaypoint: ControllerCulvert}
}

// Inputs are all that a plan depends on. They are not changed.
type Inputs struct {
	Gateway    *gatewayv1.Gateway
	Class      *gatewayv1.GatewayClass                  // that it names; nil when there is none
	Namespace  map[string]string                        // labels of its namespace
	Defaults   *corev1.ConfigMap                        // parameters of the class; may be nil
	Parameters *corev1.ConfigMap                        // that it names; nil when there is none
	Live       []*Live                                  // what is there of the kinds that are made, with the label of managed objects, in its namespace
	Foreign    []string                                 // objects that stand where ours belong, "Service waypoint"
	Hosts      map[string]bool                          // of spec.addresses: whether there is such a Service
	Routes     []*Route                                 // that name it as a parent
	Labels     func(namespace string) map[string]string // of other namespaces; nil when unknown
	Options    Options
}

// Plan is what is to be done for a Gateway.
type Plan struct {
	// Controller is the name under which it is done, "" when the Gateway is not
	// ours and nothing is to be done, and nothing said, but Remove.
	Controller string
	Apply      []Object // in this order
	Remove     []*Live  // after that
	Unmanaged  bool     // somebody else runs it; what is there is not touched

	deployed string
	domain   string
	patched  bool // there are parameters
	refused  *refusal
	foreign  string
}

// refusal is why a Gateway is not accepted. What runs it goes on as it was.
type refusal struct {
	reason  gatewayv1.GatewayConditionReason
	message string
}

// MakePlan returns what is to be done for a Gateway.
func MakePlan(in Inputs) Plan {
	controller := controllerOf(in)
	switch {
	case controller == "" && in.Class != nil: // it has gone over to somebody else's class
		return Plan{Remove: stale(in, nil)}
	case controller == "":
		return Plan{}
	}
	if !revisionMatches(in) {
		return Plan{}
	}
	g := describe(in.Gateway)
	p := Plan{Controller: controller, deployed: g.deployed(), domain: cmp.Or(in.Options.Domain, "cluster.local")}
	if p.refused = named(in.Gateway); p.refused != nil {
		return p
	}
	if p.Unmanaged, p.refused = addressed(in.Gateway, g.ServiceType); p.Unmanaged || p.refused != nil {
		return p
	}
	if p.refused = listened(in.Gateway); p.refused != nil {
		return p
	}
	patches, err := parameters(in)
	if err == nil {
		p.patched = len(patches) > 0
		p.Apply, err = assemble(g, in.Options, patches, find(in.Live, kindDeployment, g.deployed()))
	}
	if err != nil {
		p.refused = &refusal{gatewayv1.GatewayReasonInvalidParameters, err.Error()}
		return p
	}
	p.Remove = stale(in, p.Apply)
	p.withhold(in.Foreign)
	return p
}

// controllerOf returns who runs a Gateway, "" when that is not us. The classes
// that are there by themselves are ours also before they are made.
func controllerOf(in Inputs) string {
	class := string(in.Gateway.Spec.GatewayClassName)
	if in.Class == nil {
		return classes()[class]
	}
	if !isOurs(in.Class) || !isWaypointClass(class) {
		return ""
	}
	return string(in.Class.Spec.ControllerName)
}

// isWaypointClass goes by the name, as everybody does who sees only the Gateway.
func isWaypointClass(name string) bool { return strings.HasSuffix(name, "waypoint") }

// revisionMatches reports whether this control plane is meant: the Gateway's word
// goes before its namespace's, and who says nothing means the default.
func revisionMatches(in Inputs) bool {
	asked := cmp.Or(in.Gateway.Labels[LabelRevision], in.Namespace[LabelRevision], "default")
	return asked == cmp.Or(in.Options.Revision, "default")
}

// describe trims a Gateway to what its objects are made from.
func describe(gw *gatewayv1.Gateway) Gateway {
	g := Gateway{
		Namespace: gw.Namespace, Name: gw.Name, UID: string(gw.UID), Class: string(gw.Spec.GatewayClassName),
		Deployed: gw.Annotations[AnnotationNameOverride], Account: gw.Annotations[AnnotationServiceAccount],
		ServiceType: gw.Annotations[AnnotationServiceType],
		Labels:      map[string]string{}, Annotations: map[string]string{},
	}
	for _, l := range []string{LabelWaypointFor, LabelRevision} { // dashboards look for them on what runs
		if v, ok := gw.Labels[l]; ok {
			g.Labels[l] = v
		}
	}
	if infra := gw.Spec.Infrastructure; infra != nil {
		for k, v := range infra.Labels {
			g.Labels[string(k)] = string(v)
		}
		for k, v := range infra.Annotations {
			g.Annotations[string(k)] = string(v)
		}
	}
	for _, l := range gw.Spec.Listeners {
		g.Listeners = append(g.Listeners, Listener{Name: string(l.Name), Port: uint16(l.Port), Protocol: string(l.Protocol)})
	}
	if len(gw.Spec.Addresses) == 1 {
		g.Address = gw.Spec.Addresses[0].Value
	}
	return g
}

// named looks at the names that annotations choose: they become part of the paths of
// requests that are made with the control plane's rights.
func named(gw *gatewayv1.Gateway) *refusal {
	for _, a := range []struct {
		annotation string
		wrong      func(string) []string
	}{{AnnotationNameOverride, validation.IsDNS1123Label}, {AnnotationServiceAccount, validation.IsDNS1123Subdomain}} {
		name := gw.Annotations[a.annotation]
		if wrong := a.wrong(name); name != "" && len(wrong) > 0 {
			return &refusal{gatewayv1.GatewayReasonInvalidParameters, fmt.Sprintf("annotation %s: %s", a.annotation, strings.Join(wrong, "; "))}
		}
	}
	return nil
}

// addressed looks at spec.addresses and the type of the Service: a Gateway with
// hostnames is run by somebody else, and one may ask for one address.
func addressed(gw *gatewayv1.Gateway, serviceType string) (unmanaged bool, wrong *refusal) {
	switch corev1.ServiceType(serviceType) {
	case "", corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer:
	default:
		return false, &refusal{gatewayv1.GatewayReasonInvalidParameters,
			fmt.Sprintf("annotation %s is %q: expected ClusterIP, NodePort or LoadBalancer", AnnotationServiceType, serviceType)}
	}
	hosts := 0
	for i, a := range gw.Spec.Addresses {
		switch kind := addressType(a.Type); {
		case kind == gatewayv1.HostnameAddressType:
			hosts++
		case kind != gatewayv1.IPAddressType:
			return false, &refusal{gatewayv1.GatewayReasonUnsupportedAddress,
				fmt.Sprintf("spec.addresses[%d]: type %q is not supported: expected IPAddress or Hostname", i, kind)}
		}
	}
	if hosts == 0 && len(gw.Spec.Addresses) > 1 || hosts > 0 && hosts < len(gw.Spec.Addresses) {
		return false, &refusal{gatewayv1.GatewayReasonUnsupportedAddress,
			"spec.addresses: expected one IPAddress, or hostnames of Services that are there already"}
	}
	return hosts > 0, nil
}

func addressType(t *gatewayv1.AddressType) gatewayv1.AddressType {
	if t == nil {
		return gatewayv1.IPAddressType
	}
	return *t
}

// parameters returns the patches of the class and of the Gateway.
func parameters(in Inputs) (patches, error) {
	name, named, err := ParametersOf(in.Gateway)
	if err != nil {
		return nil, err
	}
	if named && in.Parameters == nil {
		return nil, fmt.Errorf("spec.infrastructure.parametersRef: ConfigMap %s/%s does not exist", in.Gateway.Namespace, name)
	}
	return readParameters(in.Defaults, in.Parameters)
}

// withhold leaves out what would go where somebody else's objects stand: without
// the Service or the Deployment there is no waypoint, and an account is an account.
func (p *Plan) withhold(foreign []string) {
	p.Apply = slices.DeleteFunc(p.Apply, func(o Object) bool {
		name := o.Kind.Kind + " " + o.Name
		if !slices.Contains(foreign, name) {
			return false
		}
		if o.Kind != kindServiceAccount && p.foreign == "" {
			p.foreign = name
		}
		return true
	})
	if p.foreign != "" {
		p.Apply = nil
	}
}

// stale returns the Gateway's objects that are not wanted. If the Gateway has gone
// to somebody else's class those are left that this one has made its own.
func stale(in Inputs, wanted []Object) (list []*Live) {
	for _, l := range in.Live {
		switch {
		case !l.Owned(in.Gateway.UID) || l.DeletionTimestamp != nil:
		case wanted == nil && !isWaypointClass(l.Labels[LabelGatewayClass]):
		case slices.ContainsFunc(wanted, func(o Object) bool { return o.Kind.Kind == l.Kind && o.Name == l.Name }):
		default:
			list = append(list, l)
		}
	}
	return list
}

// find returns the object of that kind and name, or nil.
func find(live []*Live, k Kind, name string) *Live {
	for _, l := range live {
		if l.Kind == k.Kind && l.Name == name {
			return l
		}
	}
	return nil
}

// defaultsFor returns the parameters of a class: of several ConfigMaps the oldest.
func defaultsFor(class string, list []*corev1.ConfigMap) *corev1.ConfigMap {
	var best *corev1.ConfigMap
	for _, cm := range list {
		if cm.Labels[LabelDefaultsForClass] != class {
			continue
		}
		if best == nil || cmp.Or(cm.CreationTimestamp.Compare(best.CreationTimestamp.Time), strings.Compare(cm.Name, best.Name)) < 0 {
			best = cm
		}
	}
	return best
}

// hostname is the name of the Service in front of the waypoint.
func (p Plan) hostname(namespace string) string {
	return p.deployed + "." + namespace + ".svc." + p.domain
}

// addresses returns where a Gateway is reached: its Service's addresses and its
// name. Once there are some they are only ever replaced.
func (p Plan) addresses(in Inputs) []gatewayv1.GatewayStatusAddress {
	ip, host := gatewayv1.IPAddressType, gatewayv1.HostnameAddressType
	var list []gatewayv1.GatewayStatusAddress
	if p.Unmanaged {
		for _, a := range in.Gateway.Spec.Addresses {
			if in.Hosts[a.Value] {
				list = append(list, gatewayv1.GatewayStatusAddress{Type: &host, Value: a.Value})
			}
		}
	} else if s := find(in.Live, kindService, p.deployed); s != nil && s.Owned(in.Gateway.UID) {
		for _, text := range s.IPs {
			if _, err := netip.ParseAddr(text); err == nil {
				list = append(list, gatewayv1.GatewayStatusAddress{Type: &ip, Value: text})
			}
		}
		if len(list) > 0 {
			list = append(list, gatewayv1.GatewayStatusAddress{Type: &host, Value: p.hostname(in.Gateway.Namespace)})
		}
	}
	if len(list) == 0 {
		return in.Gateway.Status.Addresses
	}
	return list[:min(len(list), maxAddresses)]
}

const maxAddresses = 16 // of a Gateway's status

// sortedFeatures is supportedFeatures of a class.
func sortedFeatures(names []string) (list []gatewayv1.SupportedFeature) {
	for _, n := range slices.Sorted(maps.Keys(set(names))) {
		list = append(list, gatewayv1.SupportedFeature{Name: gatewayv1.FeatureName(n)})
	}
	return list
}

func set(names []string) map[string]bool {
	out := map[string]bool{}
	for _, n := range names {
		out[n] = true
	}
	return out
}

// isOurs reports whether a class is run by us.
func isOurs(c *gatewayv1.GatewayClass) bool {
	return slices.Contains(Controllers(), string(c.Spec.ControllerName))
}
