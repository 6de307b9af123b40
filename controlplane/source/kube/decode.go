package kube

import (
	"encoding/json"
	"reflect"

	"github.com/culvert-mesh/culvert/controlplane/source"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

// Decode returns the control plane's object for the JSON of one that is not (yet)
// in the API server, or what is wrong with it. known is false for kinds that mean
// nothing to the control plane; then there is neither.
func Decode(group string, of source.Kind, raw []byte) (o source.Object, p *source.Problem, known bool) {
	for _, k := range kinds() {
		if k.key != of || k.group.Group != group {
			continue
		}
		v := reflect.New(reflect.TypeOf(k.sample).Elem()).Interface()
		if err := json.Unmarshal(raw, v); err != nil {
			return nil, &source.Problem{Reason: reason.InvalidValue, Detail: err.Error()}, true
		}
		o, p = k.trim(v)
		return o, p, true
	}
	return nil, nil, false
}
