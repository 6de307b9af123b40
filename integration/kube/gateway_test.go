//go:build kube

package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// waypointImage is what the control plane takes when nobody names another.
const waypointImage = "culvert.local/waypoint:0.1.0"

// reachable gives the control plane, which is no pod here, the Service by which
// waypoints find it.
func reachable(t *testing.T) {
	t.Helper()
	const name = "culvert-controlplane"
	ports := []any{fields{"name": "grpc-xds", "port": 15012, "protocol": "TCP"}}
	apply(t,
		fields{"apiVersion": "v1", "kind": "Service", "metadata": fields{"name": name, "namespace": meshNamespace}, "spec": fields{"ports": ports}},
		fields{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
			"metadata":  fields{"name": name, "namespace": meshNamespace, "labels": fields{"kubernetes.io/service-name": name}},
			"endpoints": []any{fields{"addresses": []any{controlIP}}}, "ports": ports})
}

// gatewayObject is what the tests look at of a Gateway.
type gatewayObject struct {
	Metadata struct{ Generation int64 }
	Status   struct {
		Addresses  []struct{ Type, Value string }
		Conditions []struct {
			Type, Status, Reason, Message string
			ObservedGeneration            int64
		}
	}
}

// waypoint is a Gateway and where its objects are.
type waypoint struct {
	*space
	name string
}

func (w waypoint) path(group, resource string) string {
	return fmt.Sprintf("/%s/namespaces/%s/%s/%s", group, w.space.name, resource, w.name)
}

// says waits until a condition is so, of the latest generation.
func (w waypoint) says(kind, status, reason string) gatewayObject {
	w.t.Helper()
	var g gatewayObject
	eventually(w.t, fmt.Sprintf("%s is %s, %s", kind, status, reason), func() error {
		g = gatewayObject{}
		if err := the.api.get(w.t.Context(), w.path("apis/gateway.networking.k8s.io/v1", "gateways"), &g); err != nil {
			return err
		}
		for _, c := range g.Status.Conditions {
			if c.Type == kind && c.Status == status && c.Reason == reason && c.ObservedGeneration == g.Metadata.Generation {
				return nil
			}
		}
		return fmt.Errorf("%+v", g)
	})
	return g
}

// available waits until the Deployment has so many pods that serve.
func (w waypoint) available(n int) {
	w.t.Helper()
	eventually(w.t, fmt.Sprintf("%d pods are available", n), func() error {
		var d struct {
			Status struct{ AvailableReplicas, UpdatedReplicas, Replicas int }
		}
		err := the.api.get(w.t.Context(), w.path("apis/apps/v1", "deployments"), &d)
		if err == nil && (d.Status.AvailableReplicas != n || d.Status.UpdatedReplicas != n || d.Status.Replicas != n) {
			err = fmt.Errorf("%+v", d)
		}
		return err
	})
}

func (w waypoint) parameters(data fields) {
	w.t.Helper()
	w.apply(fields{"apiVersion": "v1", "kind": "ConfigMap", "metadata": fields{"name": "parameters", "namespace": w.space.name}, "data": data})
}

// TestGateway: a Gateway becomes a waypoint that serves services of another
// namespace; parameters change it; what is damaged is repaired; and it is gone
// with its Gateway.
func TestGateway(t *testing.T) {
	if err := packImage(t.Context(), the.l, waypointImage, binary("waypoint"), nil); err != nil {
		t.Fatal(err)
	}
	reachable(t)
	w := waypoint{newSpace(t, "gateways", false), "edge"}
	w.apply(fields{"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": fields{"name": w.name, "namespace": w.space.name},
		"spec": fields{"gatewayClassName": "culvert-waypoint",
			"infrastructure": fields{"labels": fields{"team": "blue"}, "parametersRef": fields{"group": "", "kind": "ConfigMap", "name": "parameters"}},
			"listeners": []any{fields{"name": "mesh", "port": 15008, "protocol": "HBONE",
				"allowedRoutes": fields{"namespaces": fields{"from": "All"}}}}}})
	w.says("Accepted", "False", "InvalidParameters")
	w.parameters(fields{})
	g := w.says("Programmed", "True", "Programmed")
	if !slices.ContainsFunc(g.Status.Addresses, func(a struct{ Type, Value string }) bool {
		return a.Type == "Hostname" && a.Value == "edge.gateways.svc.cluster.local"
	}) {
		t.Errorf("addresses %+v", g.Status.Addresses)
	}
	w.available(1)
	w.serves()
	w.scales()
	w.isRepaired()

	if err := the.api.remove(t.Context(), w.path("apis/gateway.networking.k8s.io/v1", "gateways")); err != nil {
		t.Fatal(err)
	}
	for path, resource := range map[string]string{"apis/apps/v1": "deployments", "api/v1": "services", "apis/policy/v1": "poddisruptionbudgets"} {
		eventually(t, "there are no "+resource, func() error { return the.api.gone(t.Context(), w.path(path, resource)) })
	}
	eventually(t, "its pods are gone", func() error {
		out, err := w.kubectl("get", "pods", "-o", "name")
		if strings.Contains(out, "pod/") {
			err = errors.New(out)
		}
		return err
	})
}

// serves: a request of another namespace to one of its services goes through the
// waypoint.
func (w waypoint) serves() {
	w.t.Helper()
	s := newSpace(w.t, "behind", true)
	patch := fmt.Sprintf(`{"metadata":{"labels":{"istio.io/use-waypoint":%q,"istio.io/use-waypoint-namespace":%q}}}`, w.name, w.space.name)
	if err := the.api.patch(w.t.Context(), "/api/v1/namespaces/"+s.name, patch); err != nil {
		w.t.Fatal(err)
	}
	s.pods(newPod(s.name, "server", nodes[0]), newPod(s.name, "client", nodes[1], "pause"))
	s.apply(service(s.name, "server"))
	eventually(w.t, "a request goes through the waypoint", func() error {
		if _, err := s.exec("client", "get", "http://server/"); err != nil {
			return err
		}
		log, err := w.kubectl("logs", "deployment/"+w.name)
		if err == nil && !strings.Contains(log, `dst.service="server.behind.svc.cluster.local"`) {
			err = errors.New("the waypoint has not seen it:\n" + log)
		}
		return err
	})
}

// scales: an autoscaler says how many pods there are, and who takes it away leaves
// that number.
func (w waypoint) scales() {
	w.t.Helper()
	w.parameters(fields{"horizontalPodAutoscaler": "spec: {minReplicas: 2, maxReplicas: 3}", "podDisruptionBudget": "spec: {minAvailable: 1}",
		"deployment": "spec: {template: {metadata: {annotations: {tier: gold}}}}"})
	w.available(2)
	eventually(w.t, "two pods are as the parameters and the Gateway want them", func() error {
		out, err := w.kubectl("get", "pods", "--field-selector", "status.phase=Running",
			"-o", "jsonpath={.items[*].metadata.annotations.tier} {.items[*].metadata.labels.team}")
		if err == nil && out != "gold gold blue blue" {
			err = errors.New(out)
		}
		return err
	})
	w.parameters(fields{"horizontalPodAutoscaler": "spec: {minReplicas: 2, maxReplicas: none}"})
	w.says("Accepted", "False", "InvalidParameters")
	w.parameters(fields{"podDisruptionBudget": "spec: {minAvailable: 1}"})
	w.says("Accepted", "True", "Accepted")
	eventually(w.t, "the autoscaler is gone", func() error {
		return the.api.gone(w.t.Context(), w.path("apis/autoscaling/v2", "horizontalpodautoscalers"))
	})
	w.available(2)
}

// isRepaired: what somebody deletes or changes comes back.
func (w waypoint) isRepaired() {
	w.t.Helper()
	if err := the.api.remove(w.t.Context(), w.path("api/v1", "services")); err != nil {
		w.t.Fatal(err)
	}
	deployment := w.path("apis/apps/v1", "deployments")
	if err := the.api.patch(w.t.Context(), deployment, `{"metadata":{"labels":{"team":"red"}}}`); err != nil {
		w.t.Fatal(err)
	}
	eventually(w.t, "both are as they were", func() error {
		var d, s struct {
			Metadata struct{ Labels map[string]string }
		}
		err := errors.Join(the.api.get(w.t.Context(), deployment, &d), the.api.get(w.t.Context(), w.path("api/v1", "services"), &s))
		if err == nil && (d.Metadata.Labels["team"] != "blue" || s.Metadata.Labels["team"] != "blue") {
			err = fmt.Errorf("%v %v", d, s)
		}
		return err
	})
	w.says("Programmed", "True", "Programmed")
}
