package laptop

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/culvert-mesh/culvert/pkg/handover"
	"github.com/culvert-mesh/culvert/pkg/run"
)

// ProxyStatus is a ztunnel as its node's agent knows it: also one that has a
// successor and serves what it has open.
type ProxyStatus struct {
	Node string `json:"node"`
	handover.ClientStatus
}

// proxiesPeriod is how often the agents are asked for their ztunnels.
const proxiesPeriod = 500 * time.Millisecond

// watchProxies keeps what the agents say about their ztunnels.
func (m *Mesh) watchProxies(ctx context.Context) error {
	for run.Sleep(ctx, proxiesPeriod) == nil {
		var all []ProxyStatus
		for _, n := range m.nodes {
			list, err := askProxies(ctx, m.dir.AgentSocket(n))
			if err != nil {
				continue // the agent's own state says so
			}
			for _, p := range list {
				all = append(all, ProxyStatus{n, p})
			}
		}
		m.configMu.Lock()
		m.proxies = all
		m.configMu.Unlock()
	}
	return nil
}

func (m *Mesh) proxyStatus() []ProxyStatus {
	m.configMu.Lock()
	defer m.configMu.Unlock()
	return m.proxies
}

// askProxies asks an agent at its socket.
func askProxies(ctx context.Context, socket string) ([]handover.ClientStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, proxiesPeriod)
	defer cancel()
	transport := unixTransport(socket)
	transport.DisableKeepAlives = true
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/status", nil)
	if err != nil {
		return nil, err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("ask the agent: %s", resp.Status)
	}
	var answer struct {
		Proxies []handover.ClientStatus `json:"proxies"`
	}
	err = json.NewDecoder(resp.Body).Decode(&answer)
	return answer.Proxies, err
}
