package proxy

import (
	"context"
	"crypto/x509"

	"github.com/culvert-mesh/culvert/pkg/certs"
)

// Revoke ends tunnels whose peers' certificates have been revoked, whenever other
// revocation lists are read. It runs until ctx ends.
func (n *Node) Revoke(ctx context.Context) error {
	for {
		changed := n.TLS.Revoked.Changed()
		for _, p := range n.running() {
			p.server.Recheck()
			p.pool.Recheck()
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// recheck is asked about a tunnel's peer, which was verified when it connected.
// It is nil as long as nothing can be revoked.
func (n *Node) recheck(d certs.Direction) func([]*x509.Certificate) error {
	if n.TLS.Revoked == nil {
		return nil
	}
	return func(chain []*x509.Certificate) error { return n.TLS.Revoked.Check(chain, d) }
}
