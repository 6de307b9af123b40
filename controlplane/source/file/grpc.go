package file

import (
	"fmt"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/culvert-mesh/culvert/controlplane/source"
	"github.com/culvert-mesh/culvert/controlplane/source/trim"
)

func toGRPCRoute(r *gatewayv1.GRPCRoute, m source.Meta) (source.Object, []fault) {
	var faults []fault
	for i, rule := range r.Spec.Rules {
		at := fmt.Sprintf("spec.rules[%d]", i)
		for j, match := range rule.Matches {
			if match.Method != nil && match.Method.Type != nil {
				faults = append(faults, enum(fmt.Sprintf("%s.matches[%d].method.type", at, j), string(*match.Method.Type), "Exact", "RegularExpression")...)
			}
			for k, h := range match.Headers {
				if h.Type != nil {
					faults = append(faults, enum(fmt.Sprintf("%s.matches[%d].headers[%d].type", at, j, k), string(*h.Type), "Exact", "RegularExpression")...)
				}
			}
		}
		for j, f := range rule.Filters {
			faults = append(faults, enum(fmt.Sprintf("%s.filters[%d].type", at, j), string(f.Type),
				"RequestHeaderModifier", "ResponseHeaderModifier", "RequestMirror", "ExtensionRef")...)
		}
	}
	return trim.GRPCRoute(r, m), faults
}
