// Package localxds reads a mesh from a YAML file, for a ztunnel that runs without
// a control plane (LOCAL_XDS_PATH).
//
//	workloads:
//	- uid: Kubernetes//Pod/shop/cart-1
//	  namespace: shop
//	  workloadIps: [10.0.0.1]
//	  protocol: HBONE
//	  services: {shop/cart.shop.svc.cluster.local: {80: 8080}}
//	policies:
//	- name: only-front
//	  …
//	  rules: [[[{principals: [!Exact cluster.local/ns/shop/sa/front]}]]]
//	services:
//	- name: cart
//	  …
//	  vips: [/10.96.0.1]
//	  ports: {80: 8080}
//
// Nothing is defaulted here but the capacity: a trust domain, service account or
// cluster that is not written is empty. Unknown keys are errors, except within a
// match of a policy. Errors name the line. Everything here is pure and safe for
// concurrent use.
package localxds

import (
	"errors"
	"fmt"
	"io"
	"os"

	"go.yaml.in/yaml/v3"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// ParseFile reads the file at path.
func ParseFile(path string) ([]*mesh.Workload, []*mesh.Service, []*mesh.Policy, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, nil, err
	}
	workloads, services, policies, err := Parse(data)
	if err != nil {
		err = fmt.Errorf("%s: %w", path, err)
	}
	return workloads, services, policies, err
}

// Parse reads a document. With an error the other results are nil.
func Parse(data []byte) ([]*mesh.Workload, []*mesh.Service, []*mesh.Policy, error) {
	var root yaml.Node
	if err := yaml.Unmarshal(data, &root); err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, nil, err
	}
	if len(root.Content) == 0 {
		return nil, nil, nil, nil
	}
	var file struct{ Workloads, Services, Policies list }
	f, err := open(root.Content[0], nil, "workloads", "services", "policies")
	if err != nil {
		return nil, nil, nil, err
	}
	f.get("workloads", &file.Workloads)
	f.get("services", &file.Services)
	f.get("policies", &file.Policies)
	if f.err != nil {
		return nil, nil, nil, f.err
	}
	workloads, err := each(file.Workloads, "workloads", workload)
	if err != nil {
		return nil, nil, nil, err
	}
	if err := distinct(workloads, file.Workloads); err != nil {
		return nil, nil, nil, err
	}
	services, err := each(file.Services, "services", service)
	if err != nil {
		return nil, nil, nil, err
	}
	policies, err := each(file.Policies, "policies", policy)
	if err != nil {
		return nil, nil, nil, err
	}
	return workloads, services, policies, nil
}

// distinct checks that no UID comes twice: the later workload would replace the
// earlier one.
func distinct(workloads []*mesh.Workload, items list) error {
	seen := make(map[mesh.UID]bool, len(workloads))
	for i, w := range workloads {
		if seen[w.UID] {
			return fmt.Errorf("workloads[%d]: line %d: uid %q comes twice", i, items[i].Line, w.UID)
		}
		seen[w.UID] = true
	}
	return nil
}

// list is items that are looked at later.
type list []yaml.Node

func each[T any](items list, name string, parse func(*yaml.Node) (T, error)) ([]T, error) {
	out := make([]T, 0, len(items))
	for i := range items {
		v, err := parse(&items[i])
		if err != nil {
			return nil, fmt.Errorf("%s[%d]: %w", name, i, err)
		}
		out = append(out, v)
	}
	return out, nil
}
