package proxy

import (
	"errors"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/pkg/netns"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

// reserve is a descriptor that is kept for when there is no other. The client of a
// connection in a listener's queue believes itself connected: who cannot be
// accepted would wait until it loses patience, and the listener would spin. With
// the reserve's number the connection is accepted, and reset.
type reserve struct {
	mu   sync.Mutex
	file *os.File // nil while it could not be had back
}

// spare is this process's reserve: descriptors are the process's.
var spare reserve

// hold makes sure that there is a reserve.
func (r *reserve) hold() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.holdLocked()
}

func (r *reserve) holdLocked() bool {
	if r.file == nil {
		r.file, _ = os.Open(os.DevNull) // another time
	}
	return r.file != nil
}

// refuse resets the first connection in l's queue and says where it came from;
// false when there was none, or no reserve.
func (r *reserve) refuse(l *listener) (from netip.AddrPort, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.holdLocked() {
		return from, false
	}
	_ = r.file.Close()
	r.file = nil
	defer r.holdLocked()
	fd, err := l.accept4()
	if err != nil {
		return from, false
	}
	if sa, err := unix.Getpeername(fd); err == nil {
		remote := netns.AddrPort(sa)
		from = netip.AddrPortFrom(remote.Addr().Unmap(), remote.Port())
	}
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	_ = unix.Close(fd)
	return from, true
}

// shortPatience is how long a listener waits for a descriptor before it refuses
// connections: some are given back all the time.
const shortPatience = 100 * time.Millisecond

// shortage is a listener's view of the process's descriptors.
type shortage struct{ since time.Time }

// over reports whether descriptors have been short, as err says, for too long.
func (s *shortage) over(err error, now time.Time) bool {
	if !errors.Is(err, unix.EMFILE) && !errors.Is(err, unix.ENFILE) {
		return false
	}
	if s.since.IsZero() {
		s.since = now
	}
	return now.Sub(s.since) >= shortPatience
}

// refuseQueued resets what is in the queue.
func (l *listener) refuseQueued(why error) {
	for {
		from, ok := spare.refuse(l)
		if !ok {
			return
		}
		if l.refused != nil {
			l.refused(from, why)
		}
	}
}

// refuse tells of a connection that could not be accepted.
func (p *Pod) refuse(l *listener, remote netip.AddrPort, cause error) {
	dir := inbound
	if l == p.outbound {
		dir = outbound
	}
	rec := p.begin(dir)
	rec.line.Source.Addr = remote
	rec.end(reason.New(reason.Overloaded, "accept", remote.String(), cause))
}

// exhausted reports whether this machine has run out of something that a
// connection needs.
func exhausted(err error) bool {
	for _, e := range []unix.Errno{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.EADDRNOTAVAIL} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
