package model_test

import (
	networking "istio.io/api/networking/v1alpha3"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/culvert-mesh/culvert/controlplane/source"
)

func (d dice) serviceEntry() source.Object {
	e := &source.ServiceEntry{Meta: d.meta("se1", "se2", "s1"), Spec: &networking.ServiceEntry{
		Hosts:      []string{d.of("x.example", "y.example", "*.z.example", "s1.a.svc.cluster.local"), d.of("y.example", "z.example")}[:1+d.IntN(2)],
		Resolution: networking.ServiceEntry_Resolution(d.IntN(4)),
		Ports:      []*networking.ServicePort{{Number: uint32(80 + d.IntN(2)), Name: "http", Protocol: d.of("HTTP", "TCP")}},
	}}
	switch d.IntN(4) {
	case 0:
		e.Spec.WorkloadSelector = &networking.WorkloadSelector{Labels: map[string]string{"app": d.of("x", "y")}}
	case 1:
		e.Spec.Endpoints = []*networking.WorkloadEntry{{Address: d.of("192.0.2.1", "192.0.2.2", "far.example")}}
	case 2:
		e.Spec.Addresses = []string{d.of("240.1.0.1", "240.2.0.0/16")}
	}
	if d.IntN(4) == 0 {
		e.Spec.ExportTo = []string{d.of(".", "*", "b")}
	}
	if d.IntN(4) == 0 {
		e.Addresses = []source.HostAddress{{Host: e.Spec.Hosts[0], Value: d.of("240.240.0.1", "240.240.0.2")}}
	}
	return e
}

func (d dice) workloadEntry() source.Object {
	return &source.WorkloadEntry{Meta: d.meta("we1", "we2"), Spec: &networking.WorkloadEntry{Address: d.of("192.0.2.7", "192.0.2.8", "vm.example"),
		Labels: map[string]string{"app": d.of("x", "y", "z")}, ServiceAccount: d.of("s", "")}}
}

func (d dice) endpointSlice() source.Object {
	s := &source.EndpointSlice{Meta: d.meta("sl1", "sl2"), Ports: []source.EndpointPort{{Name: d.of("http", ""), Port: int32(8080 + d.IntN(2)), Protocol: "TCP"}}}
	s.Labels[source.LabelService] = d.of("s1", "s2", "")
	s.Endpoints = []source.Endpoint{{Addresses: []string{d.of("10.0.0.1", "192.0.2.9")}, Pod: d.of("", "p1", "p2"), Node: d.of("n1", ""), Ready: d.IntN(2) == 0}}
	return s
}

func (d dice) referenceGrant() source.Object {
	return &source.ReferenceGrant{Meta: d.meta("g1"), Spec: gatewayv1.ReferenceGrantSpec{
		From: []gatewayv1.ReferenceGrantFrom{{Group: "gateway.networking.k8s.io", Kind: gatewayv1.Kind(d.of("HTTPRoute", "GRPCRoute")), Namespace: gatewayv1.Namespace(d.namespace())}},
		To:   []gatewayv1.ReferenceGrantTo{{Kind: "Service"}},
	}}
}

func (d dice) grpcRoute() source.Object {
	kind, group, ns := gatewayv1.Kind("Service"), gatewayv1.Group(""), gatewayv1.Namespace(d.namespace())
	port := gatewayv1.PortNumber(80)
	service := d.of("shop.Cart", "shop.Other")
	r := &source.GRPCRoute{Meta: d.meta("r1", "r3")}
	r.Spec.ParentRefs = []gatewayv1.ParentReference{{Group: &group, Kind: &kind, Namespace: &ns, Name: gatewayv1.ObjectName(d.of("s1", "s2"))}}
	r.Spec.Rules = []gatewayv1.GRPCRouteRule{{
		Matches: []gatewayv1.GRPCRouteMatch{{Method: &gatewayv1.GRPCMethodMatch{Service: &service}}},
		BackendRefs: []gatewayv1.GRPCBackendRef{{BackendRef: gatewayv1.BackendRef{BackendObjectReference: gatewayv1.BackendObjectReference{
			Name: gatewayv1.ObjectName(d.of("s1", "s2", "s3")), Namespace: &ns, Port: &port}}}},
	}}
	return r
}
