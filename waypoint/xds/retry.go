package xds

import (
	"errors"
	"fmt"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"github.com/culvert-mesh/culvert/waypoint/config"
)

// decodeRetry decodes when a request is sent again. Failed connections always
// count here, so a policy must ask for them.
func decodeRetry(m *routev3.RetryPolicy) (*config.Retry, error) {
	if m == nil {
		return nil, nil
	}
	r := &config.Retry{Attempts: 1, TryTimeout: m.GetPerTryTimeout().AsDuration(), Backoff: m.GetRetryBackOff().GetBaseInterval().AsDuration()}
	if m.GetNumRetries() != nil {
		r.Attempts = int(m.GetNumRetries().GetValue())
	}
	asked := map[string]bool{}
	for _, on := range strings.Split(m.GetRetryOn(), ",") {
		switch on {
		case "connect-failure", "reset", "retriable-status-codes":
			asked[on] = true
		default:
			return nil, fmt.Errorf("retry_on: %q is not supported", on)
		}
	}
	if !asked["connect-failure"] || !asked["reset"] {
		return nil, errors.New("retry_on: without connect-failure and reset it is not supported")
	}
	if asked["retriable-status-codes"] {
		for _, code := range m.GetRetriableStatusCodes() {
			r.Codes = append(r.Codes, int(code))
		}
	}
	if r.TryTimeout < 0 || r.Backoff < 0 {
		return nil, errors.New("negative time")
	}
	return r, nil
}

func decodeMirrors(list []*routev3.RouteAction_RequestMirrorPolicy) (out []config.Mirror, err error) {
	for i, m := range list {
		if m.GetCluster() == "" {
			return nil, fmt.Errorf("[%d].cluster: required", i)
		}
		mirror := config.Mirror{Cluster: m.GetCluster(), Millionths: 1_000_000}
		if f := m.GetRuntimeFraction().GetDefaultValue(); f != nil {
			mirror.Millionths = f.GetNumerator() * perMillion(f.GetDenominator())
		}
		out = append(out, mirror)
	}
	return out, nil
}

func perMillion(d typev3.FractionalPercent_DenominatorType) uint32 {
	switch d {
	case typev3.FractionalPercent_TEN_THOUSAND:
		return 100
	case typev3.FractionalPercent_MILLION:
		return 1
	}
	return 10_000
}
