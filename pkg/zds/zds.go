// Package zds speaks both ends of the protocol by which a node's agent hands the
// network namespaces of its pods to the node's ztunnel.
//
//	ztunnel (Client)                                  agent (Server)
//	   ── ZdsHello{V1} ──────────────────────────────────▶
//	   ◀─ Add{uid, pod} + namespace descriptor ───────────   once per pod,
//	   ── Ack{error} ────────────────────────────────────▶   Keep{uid} if its
//	   ◀─ SnapshotSent ───────────────────────────────────   namespace is not found
//	   ── Ack ───────────────────────────────────────────▶
//	   ◀─ Add + descriptor │ Del ─────────────────────────   from then on,
//	   ── Ack{error} ────────────────────────────────────▶   one at a time
//
// The socket is AF_UNIX SOCK_SEQPACKET: one protobuf message per packet, at most
// wire.MaxPacket bytes, the descriptor as SCM_RIGHTS in the packet of its Add.
//
// Several ztunnels may be connected while one replaces another: Adds go to the
// newest, Dels to all. Server's and Client's methods are safe for concurrent use;
// a Handler is called by one goroutine at a time.
package zds

import (
	"errors"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netns"
)

// Workload is one pod in a snapshot.
type Workload struct {
	UID  mesh.PodUID
	Info mesh.PodInfo
	// NS is the pod's namespace. When it is nil the pod is known but its namespace
	// was not found, and a ztunnel that already serves the pod is told to keep it.
	NS *netns.NS
}

var (
	// ErrNoZtunnel says that no ztunnel is connected; the request can be tried again.
	ErrNoZtunnel = errors.New("no ztunnel connection")
	// ErrTimeout says that ztunnel did not answer in time; the request can be
	// tried again and may have taken effect.
	ErrTimeout = errors.New("ztunnel did not answer in time")
	// ErrViolation is in the chain of Client.Run's error when the agent broke the
	// protocol in a way that reconnecting cannot mend. The process should end.
	ErrViolation = errors.New("protocol violation by the node agent")
)

// RefusedError is a request that ztunnel answered with an error, or that could
// not be put into a packet for it.
type RefusedError struct{ Text string }

func (e *RefusedError) Error() string { return "refused: " + e.Text }
