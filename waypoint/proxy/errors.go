package proxy

import (
	"errors"
	stdhttp "net/http"
	"net/netip"
	"os"

	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
	"github.com/culvert-mesh/culvert/waypoint/cluster"
	"github.com/culvert-mesh/culvert/waypoint/config"
	"github.com/culvert-mesh/culvert/waypoint/http/h1"
)

func errNoCluster(name string) error {
	return reason.New(reason.BackendUnresolved, "find cluster", name, nil)
}

// workloadEndpoint is the endpoint of a destination that is one workload.
func (p *Proxy) workloadEndpoint(d *config.Destination, to netip.AddrPort) (*cluster.Endpoint, error) {
	w := p.cfg.View.Workload(d.UID)
	if w == nil || w.Status != mesh.Healthy {
		return nil, reason.New(reason.NoHealthyUpstream, "choose endpoint", string(d.UID), nil)
	}
	return p.cfg.Clusters.Workload(w, to), nil
}

// answer is what a failure means to the client: a status, and upstream's
// response flag for the log.
type answer struct {
	status int
	flags  string
	body   string
}

// answerTo turns the failure to get a response from an endpoint into an answer.
func answerTo(err error) answer {
	if isTimeout(err) {
		return answer{stdhttp.StatusGatewayTimeout, "UT", "upstream request timeout"}
	}
	var protocol *h1.Error
	if errors.As(err, &protocol) {
		return answer{stdhttp.StatusBadGateway, "UPE", "upstream sent a malformed response"}
	}
	switch reason.Of(err) {
	case reason.NoHealthyUpstream:
		return answer{stdhttp.StatusServiceUnavailable, "UH", "no healthy upstream"}
	case reason.Overloaded:
		return answer{stdhttp.StatusServiceUnavailable, "UO", "upstream overflow"}
	case reason.UpstreamReset:
		return answer{stdhttp.StatusServiceUnavailable, "UC", "upstream connect error or disconnect/reset before headers"}
	case reason.BackendUnresolved:
		return answer{stdhttp.StatusServiceUnavailable, "NC", "no such cluster"}
	}
	return answer{stdhttp.StatusServiceUnavailable, "UF", "upstream connect error"}
}

func isTimeout(err error) bool {
	return errors.Is(err, os.ErrDeadlineExceeded) || reason.Of(err) == reason.RequestTimeout
}

// worthAnother reports whether a connect failure may go better with another
// endpoint: one that refused us for who we are would refuse again.
func worthAnother(err error) bool {
	var status *hbone.StatusError
	if errors.As(err, &status) {
		return status.Status == stdhttp.StatusServiceUnavailable
	}
	switch reason.Of(err) {
	case reason.NoCertificate, reason.Overloaded, reason.NoHealthyUpstream:
		return false
	}
	return true
}
