// Package handover keeps what a ztunnel must not lose when it dies: its listening
// sockets, and what it knew.
//
//	ztunnel (Client) ── Put: sockets of a pod ──────────▶ agent or supervisor (Store)
//	                 ── Save: a sealed memfd ──────────▶
//	                 ── Serving ───────────────────────▶ ── Superseded ──▶ older clients
//	      killed
//	its successor    ── Take: sockets of a pod ────────▶
//	                 ── Load: the sealed memfds ───────▶
//
// The store holds a second descriptor of the very same socket: the kernel goes on
// completing handshakes while nobody accepts, and whoever takes the descriptor
// accepts from the same queue. Two ztunnels that share it lose nothing between
// them, which two sockets of one SO_REUSEPORT group would. A pod's sockets are
// dropped when the pod leaves; they would keep its network namespace alive.
//
// What a ztunnel knew comes in sections, each a sealed memfd of its own
// (memfd_create(2), F_SEAL_WRITE, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_SEAL): it is
// never on disk, can be handed around without copying, and cannot change under
// the hands of whoever reads it. Encode and Decode say what is in one.
//
// The socket is AF_UNIX SOCK_SEQPACKET with mode 0600, and both ends must be root
// or the same user (SO_PEERCRED). A packet is one JSON object of at most maxPacket
// bytes, with descriptors as SCM_RIGHTS; every request has one answer, and the
// store tells a client unasked whether a newer one serves.
//
// Stores and Clients are safe for concurrent use.
package handover

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// Bounds of what a store takes.
const (
	maxPacket   = 16 << 10  // bytes of one message
	maxSockets  = 16        // of one pod
	maxPods     = 8192      // with sockets
	maxSections = 8         // of a snapshot
	MaxSection  = 256 << 20 // bytes of one section as it is in the memfd
	version     = 1         // of the protocol
)

// PathOf returns where the store beside a ZDS socket listens.
func PathOf(zdsSocket string) string { return zdsSocket + ".handover" }

// Key names a pod's sockets: a pod that got a new network namespace has none.
type Key struct {
	Pod       mesh.PodUID
	Namespace string // identifies the network namespace: netns.ID's text
}

// State says what a ztunnel does.
type State string

// States of a ztunnel.
const (
	Starting State = "starting" // not every pod of the node is served yet
	Serving  State = "serving"
	Leaving  State = "leaving"  // told to end, and accepts until a successor does
	Draining State = "draining" // its open connections go on, new ones are others'
)

// Status is what a ztunnel tells about itself, for people.
type Status struct {
	State State `json:"state"`
	// Open is how many connections are open, at most this many seconds ago: a
	// ztunnel that drains tells it every second, others when they change state.
	Open  int       `json:"open"`
	Until time.Time `json:"until,omitzero"` // when what is open will be cut off
	// Away says that there is no control plane at present, and Contact when it was
	// last heard of, by this process or by the one before it; zero = never.
	Away     bool      `json:"away,omitempty"`
	Contact  time.Time `json:"contact,omitzero"`
	Restored bool      `json:"restored,omitempty"` // what it knows is from its predecessor
	// Born is when the ztunnel started, on the clock that nobody sets
	// (CLOCK_BOOTTIME): of two the later is the successor, in whichever order they
	// come back to a store that has been started again. The Client fills it in.
	Born time.Duration `json:"born,omitempty"`
}

// ClientStatus is a connected ztunnel.
type ClientStatus struct {
	Status
	PID        int  `json:"pid"` // 0 when it is in a PID namespace that is not ours
	Superseded bool `json:"superseded,omitempty"`
}

// ErrDetached says that there is no connection to the store.
var ErrDetached = errors.New("no connection to the store")

// sinceBoot is what clock_gettime(2) says of CLOCK_BOOTTIME.
func sinceBoot() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// checkPeer makes sure that the other end is root or our own user, and returns
// its process.
func checkPeer(c *net.UnixConn) (pid int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var cerr error
	err = raw.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(err, cerr); err != nil {
		return 0, os.NewSyscallError("getsockopt SO_PEERCRED", err)
	}
	if !trusted(cred.Uid, uint32(os.Geteuid())) {
		return 0, fmt.Errorf("peer is user %d: only root and user %d may hand over sockets", cred.Uid, os.Geteuid())
	}
	return int(cred.Pid), nil
}

func trusted(uid, own uint32) bool { return uid == 0 || uid == own }
