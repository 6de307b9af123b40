//go:build kube

package installed

import (
	"cmp"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// object is a document, as it is applied.
type object struct {
	kind, namespace, name, json string
}

// key is what kubectl calls it: NAMESPACE:KIND/NAME.
func (o object) key() string { return o.namespace + ":" + o.kind + "/" + o.name }

var separator = regexp.MustCompile(`(?m)^---\s*$`)

// spacesOf are the namespaces that documents are in or make, the first one first.
// What cannot be read has none.
func spacesOf(text string) (list []string) {
	for _, doc := range separator.Split(text, -1) {
		var o struct {
			Kind     string
			Metadata struct{ Name, Namespace string }
		}
		if yaml.Unmarshal([]byte(doc), &o) != nil {
			continue
		}
		name := o.Metadata.Namespace
		if o.Kind == "Namespace" {
			name = o.Metadata.Name
		}
		if name != "" && !slices.Contains(list, name) {
			list = append(list, name)
		}
	}
	return list
}

// translate turns what a laptop is given into what a cluster wants to be told as well:
// its own names of nodes, namespaces and ranges of addresses, the accounts and
// namespaces that pods need, and that the image is there already. Nothing in it is
// about the mesh.
func translate(text string, n names) (list []object, err error) {
	accounts := map[string]bool{}
	for _, doc := range separator.Split(text, -1) {
		var m map[string]any
		if err := yaml.Unmarshal([]byte(doc), &m); err != nil {
			return nil, err
		}
		if m == nil {
			continue
		}
		m = n.renamed("", m).(map[string]any)
		meta, _ := m["metadata"].(map[string]any)
		o := object{kind: fmt.Sprint(m["kind"]), name: fmt.Sprint(meta["name"])}
		if o.kind == "Namespace" {
			meta["name"] = n.space(o.name)
			o.name = n.space(o.name)
		}
		ns, _ := meta["namespace"].(string)
		o.namespace = cmp.Or(ns, "default")
		if account := adapt(m); account != "" {
			accounts[o.namespace+" "+account] = true
		}
		raw, err := json.Marshal(m)
		if err != nil {
			return nil, err
		}
		o.json = string(raw) + "\n"
		list = append(list, o)
	}
	for account := range accounts {
		ns, name, _ := strings.Cut(account, " ")
		list = append(list, object{kind: "ServiceAccount", namespace: ns, name: name,
			json: fmt.Sprintf(`{"apiVersion":"v1","kind":"ServiceAccount","metadata":{"name":%q,"namespace":%q}}`+"\n", name, ns)})
	}
	return list, nil
}

// renamed is a value with the cluster's names in the place of the script's.
func (n names) renamed(key string, v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, x := range v {
			v[k] = n.renamed(k, x)
		}
	case []any:
		for i, x := range v {
			v[i] = n.renamed(key, x)
		}
	case string:
		if key == "namespace" || key == "namespaces" || key == "notNamespaces" {
			return n.space(v)
		}
		return n.there(v)
	}
	return v
}

// inOrder returns objects in the order in which a cluster takes them, each once.
func inOrder(list []object) []object {
	have := map[string]bool{}
	list = slices.DeleteFunc(list, func(o object) bool {
		twice := have[o.key()]
		have[o.key()] = true
		return twice
	})
	order := []string{"Pod", "Deployment", "ServiceAccount", "Namespace"} // the last first
	slices.SortStableFunc(list, func(a, b object) int {
		return slices.Index(order, b.kind) - slices.Index(order, a.kind)
	})
	return list
}

// adapt changes what a cluster would refuse or look for elsewhere, and returns the
// account of the object's pods.
func adapt(m map[string]any) (account string) {
	spec, _ := m["spec"].(map[string]any)
	if addresses, ok := spec["clusterIPs"].([]any); ok {
		spec["clusterIPs"] = addresses[:1] // its nodes have one family of addresses
	}
	if template, ok := spec["template"].(map[string]any); ok {
		spec, _ = template["spec"].(map[string]any)
	}
	containers, _ := spec["containers"].([]any)
	for _, c := range containers {
		if c, ok := c.(map[string]any); ok && c["image"] == "culvert/echo" {
			c["image"], c["imagePullPolicy"] = echoImage, "Never"
		}
	}
	account, _ = spec["serviceAccountName"].(string)
	return account
}
