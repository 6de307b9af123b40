package h2

import (
	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// Snapshot describes the server's connections: of each, Peer.Addr is where it
// came from and Peer.Expect the identity that was shown.
func (s *Server) Snapshot() []ConnInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []ConnInfo
	for c := range s.conns {
		in := &c.serverSide.incoming
		list = append(list, c.info(hbone.Peer{Addr: in.Remote, Expect: []mesh.Identity{in.Peer}}))
	}
	return list
}
