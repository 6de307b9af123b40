package gateway

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	strictjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// Keys of a ConfigMap of parameters. Each is a strategic merge patch, in YAML, of
// the object that is made. The two that are not made by themselves are made when
// their key is there.
const (
	keyDeployment     = "deployment"
	keyService        = "service"
	keyServiceAccount = "serviceAccount"
	keyAutoscaler     = "horizontalPodAutoscaler"
	keyDisruption     = "podDisruptionBudget"
)

// patch is one key of one ConfigMap.
type patch struct {
	from string // "ConfigMap shop/parameters: deployment"
	json []byte
}

// patches are those of every ConfigMap, by key, in the order of merging.
type patches map[string][]patch

// readParameters returns the patches of ConfigMaps, those of the class first. The
// error is for the user.
func readParameters(configMaps ...*corev1.ConfigMap) (patches, error) {
	all := patches{}
	known := []string{keyDeployment, keyService, keyServiceAccount, keyAutoscaler, keyDisruption}
	for _, cm := range configMaps {
		if cm == nil {
			continue
		}
		from := "ConfigMap " + cm.Namespace + "/" + cm.Name
		for _, key := range slices.Sorted(maps.Keys(cm.Data)) {
			if !slices.Contains(known, key) {
				return nil, fmt.Errorf("%s: unknown key %q: known are %s", from, key, strings.Join(known, ", "))
			}
			raw, err := yaml.YAMLToJSONStrict([]byte(cm.Data[key]))
			if err != nil {
				return nil, fmt.Errorf("%s: %s: %w", from, key, err)
			}
			if string(raw) == "null" {
				raw = []byte("{}")
			}
			all[key] = append(all[key], patch{from + ": " + key, raw})
		}
	}
	return all, nil
}

// has reports whether anybody asks for that object.
func (p patches) has(key string) bool { return len(p[key]) > 0 }

// overlay merges the patches of one key into object. Fields that its type does not
// have are errors.
func overlay[T any](p patches, key string, object *T) error {
	for _, patch := range p[key] {
		was, err := json.Marshal(object)
		if err != nil {
			return fmt.Errorf("%s: %w", patch.from, err)
		}
		is, err := strategicpatch.StrategicMergePatch(was, patch.json, *new(T))
		if err != nil {
			return fmt.Errorf("%s: %w", patch.from, err)
		}
		var merged T
		wrong, err := strictjson.UnmarshalStrict(is, &merged)
		if err = errors.Join(append(wrong, err)...); err != nil {
			return fmt.Errorf("%s: %w", patch.from, err)
		}
		*object = merged
	}
	return nil
}

// ParametersOf names the ConfigMap that a Gateway's parametersRef leads to; false
// when there is no such reference. What else it may name is an error for the user.
func ParametersOf(g *gatewayv1.Gateway) (name string, ok bool, err error) {
	if g.Spec.Infrastructure == nil || g.Spec.Infrastructure.ParametersRef == nil {
		return "", false, nil
	}
	ref := g.Spec.Infrastructure.ParametersRef
	if ref.Group != "" && ref.Group != "core" || ref.Kind != "ConfigMap" {
		return "", true, fmt.Errorf("spec.infrastructure.parametersRef: %s %q is not supported: expected a ConfigMap (group \"\")",
			ref.Kind, ref.Group)
	}
	return ref.Name, true, nil
}
