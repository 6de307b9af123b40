package laptop

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/culvert-mesh/culvert/cli/laptop/cluster"
	"github.com/culvert-mesh/culvert/cli/laptop/kubelet"
	"github.com/culvert-mesh/culvert/pkg/run"
	"github.com/culvert-mesh/culvert/pkg/token"
)

// The account that the node proxies run as.
const (
	systemNamespace = "culvert-system"
	ztunnelAccount  = "ztunnel"
)

// tokenRenewal is how often tokens are written anew; they live for 12 hours.
const tokenRenewal = 4 * time.Hour

// renewTokens keeps every token fresh.
func (m *Mesh) renewTokens(ctx context.Context) error {
	for run.Sleep(ctx, tokenRenewal) == nil {
		if err := m.writeNodeTokens(); err != nil {
			m.bad("tokens", err.Error())
		}
		_ = m.do(ctx, func() {
			for _, p := range m.state.cluster.Pods() {
				if err := m.writePodToken(p); err != nil {
					m.bad("tokens", err.Error())
				}
			}
		})
	}
	return nil
}

func (m *Mesh) writeNodeTokens() error {
	for _, n := range m.nodes {
		err := m.writeToken(m.dir.NodeToken(n), token.Claims{
			Namespace:      systemNamespace,
			ServiceAccount: token.Ref{Name: ztunnelAccount, UID: "ztunnel"},
			Pod:            token.Ref{Name: ztunnelName(n), UID: ztunnelName(n)},
			Node:           token.Ref{Name: n, UID: n},
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (m *Mesh) writePodToken(p *cluster.Pod) error {
	return m.writeToken(kubelet.TokenPath(m.dir.Pod(p.UID)), token.Claims{
		Namespace:      p.Name.Namespace,
		ServiceAccount: token.Ref{Name: p.Object.Spec.ServiceAccountName, UID: p.Object.Spec.ServiceAccountName},
		Pod:            token.Ref{Name: p.Name.Name, UID: p.UID},
		Node:           token.Ref{Name: p.Node, UID: p.Node},
	})
}

// writeToken replaces the file at once: its reader never sees half a token.
func (m *Mesh) writeToken(path string, c token.Claims) error {
	raw, err := m.issuer.Issue(c)
	if err != nil {
		return fmt.Errorf("issue token for %s: %w", c.Account(), err)
	}
	tmp := filepath.Join(filepath.Dir(path), ".token")
	if err := os.WriteFile(tmp, []byte(raw), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
