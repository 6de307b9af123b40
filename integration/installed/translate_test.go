//go:build kube

package installed

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"
)

// object is a document, as it is applied.
type object struct {
	kind, namespace, name, yaml string
}

// key is what kubectl calls it: NAMESPACE:KIND/NAME.
func (o object) key() string { return o.namespace + ":" + o.kind + "/" + o.name }

// number is the cluster's, which its addresses depend on.
func number() int {
	n, _ := strconv.Atoi(os.Getenv("CULVERT_KUBE_NUMBER"))
	return n
}

func servicePrefix() string { return fmt.Sprintf("10.%d", 98+number()) }
func podPrefix() string     { return fmt.Sprintf("10.%d", 246+number()) }

// laptopNode is what scripts call a node of the cluster.
func laptopNode(node string) string { return strings.Replace(node, "node", "node-", 1) }

var (
	separator = regexp.MustCompile(`(?m)^---\s*$`)
	nodeNames = regexp.MustCompile(`\bnode-(\d)\b`)
)

// translate turns what a laptop is given into what a cluster wants to be told as well:
// its own names of nodes and ranges of addresses, the accounts and namespaces that
// pods need, and that the image is there already. Nothing in it is about the mesh.
func translate(text string) ([]object, error) {
	text = nodeNames.ReplaceAllString(text, "node$1")
	text = strings.ReplaceAll(text, "10.96.", servicePrefix()+".")
	var list []object
	accounts, spaces, have := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, doc := range separator.Split(text, -1) {
		var m map[string]any
		if err := yaml.Unmarshal([]byte(doc), &m); err != nil {
			return nil, err
		}
		if m == nil {
			continue
		}
		meta, _ := m["metadata"].(map[string]any)
		o := object{kind: fmt.Sprint(m["kind"]), name: fmt.Sprint(meta["name"])}
		ns, _ := meta["namespace"].(string)
		o.namespace = cmp.Or(ns, "default")
		if o.namespace != "default" {
			spaces[o.namespace] = true
		}
		if account := adapt(m); account != "" {
			accounts[o.namespace+" "+account] = true
		}
		raw, err := json.Marshal(m)
		if err != nil {
			return nil, err
		}
		o.yaml = string(raw) + "\n"
		have[o.key()] = true
		list = append(list, o)
	}
	add := func(o object, text string) {
		if !have[o.key()] {
			o.yaml = text
			list = append(list, o)
		}
	}
	for account := range accounts {
		ns, name, _ := strings.Cut(account, " ")
		add(object{kind: "ServiceAccount", namespace: ns, name: name}, fmt.Sprintf("apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: %s, namespace: %s}\n", name, ns))
	}
	for ns := range spaces {
		add(object{kind: "Namespace", namespace: "default", name: ns}, fmt.Sprintf("apiVersion: v1\nkind: Namespace\nmetadata: {name: %s}\n", ns))
	}
	order := []string{"Pod", "ServiceAccount", "Namespace"} // the last first
	slices.SortStableFunc(list, func(a, b object) int {
		return slices.Index(order, b.kind) - slices.Index(order, a.kind)
	})
	return list, nil
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
