package compile

import (
	"fmt"
	"strconv"

	"github.com/culvert-mesh/culvert/controlplane/source"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

// A second waypoint that is to get a share of a service's connections.
const (
	LabelCanary          = "istio.io/use-waypoint-canary"
	LabelCanaryNamespace = "istio.io/use-waypoint-canary-namespace"
	AnnotationCanary     = "istio.io/use-waypoint-canary-weight" // 0 to 100, of 100
)

// canary judges the second waypoint of a service that has a first, which gets all
// connections: ztunnels here divide them between the pods of a waypoint, not between
// waypoints. own tells whether the first was chosen by the service itself; the
// namespace's canary is that of services that have the namespace's first.
func (c *compilation) canary(f frontend, primary source.Key, own bool) {
	meta := f.meta()
	if _, ok := meta.Labels[LabelCanary]; !ok && !own {
		ns, found := c.view.Get(source.Key{Kind: source.KindNamespace, Name: meta.Namespace}).(*source.Namespace)
		if !found {
			return
		}
		meta = &ns.Meta
	}
	name := meta.Labels[LabelCanary]
	if name == "" {
		return
	}
	namespace := f.meta().Namespace
	if ns := meta.Labels[LabelCanaryNamespace]; ns != "" {
		namespace = ns
	}
	weight, err := strconv.Atoi(meta.Annotations[AnnotationCanary])
	if _, given := meta.Annotations[AnnotationCanary]; !given {
		weight, err = 0, nil
	}
	field := `metadata.labels["` + LabelCanary + `"]`
	switch {
	case err != nil || weight < 0 || weight > 100:
		c.coded(WaypointBound, CodeCanaryInvalidWeight, reason.InvalidValue, `metadata.annotations["`+AnnotationCanary+`"]`,
			fmt.Sprintf("%q is not a number from 0 to 100: every connection goes to the first waypoint", meta.Annotations[AnnotationCanary]))
	case namespace == primary.Namespace && name == primary.Name:
		c.coded(WaypointBound, CodeCanarySameAsPrimary, reason.Conflict, field, "it is the first waypoint too")
	case weight > 0:
		c.coded(WaypointBound, CodeUnsupportedValue, reason.Unsupported, field, "shares between waypoints are not supported: every connection goes to the first one")
	}
}
