package h2

import (
	"fmt"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Is the peer there? A PING that is not answered has one of three causes, and the
// kernel can tell the last from the others:
//
//	a moment's delay             everything goes on
//	its process stands still     its kernel acknowledges what we send: streams wait
//	                             for FreezeTimeout, new ones go elsewhere
//	it is gone, or the way to it  nothing acknowledges: the tunnel ends in seconds
//
// Whichever it is, a tunnel that has been silent for suspectAfter gets no new
// streams while another connection can be had.

const (
	// suspectAfter is for how long a PING may be unanswered before a tunnel is
	// avoided: far beyond every round trip, and less than people notice.
	suspectAfter = time.Second
	// goneAfter is how long a kernel may leave what we send unacknowledged before it
	// counts as gone; goneProbes is how many questions for more room.
	goneAfter  = 4 * time.Second
	goneProbes = 4
)

// kernel is what TCP knows of a connection's other end.
type kernel struct {
	known bool
	deaf  time.Duration // since it last acknowledged anything, while something is outstanding
}

// socket returns the TCP socket of a connection, nil if it has none.
func socket(c net.Conn) syscall.RawConn {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}

// kernel asks TCP about the peer (tcp(7), TCP_INFO).
func (c *conn) kernel() (k kernel) {
	if c.socket == nil {
		return k
	}
	err := c.socket.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			k.known = true
			if info.Unacked > 0 || info.Probes >= goneProbes {
				k.deaf = time.Duration(info.Last_ack_recv) * time.Millisecond
			}
		}
	})
	if err != nil {
		return kernel{}
	}
	return k
}

// overdue says why the peer is given up now, "" while it is not. c.mu is held.
func (c *conn) overdue(now time.Time) string {
	if c.awaiting {
		return c.settings.verdict(now.Sub(c.lastSign()), now.Sub(c.pinged), c.kernel())
	}
	heard := time.Unix(0, max(c.heard.Load(), c.opened.UnixNano()))
	return c.settings.verdict(now.Sub(heard), 0, c.kernel())
}

// verdict says why a peer is given up that has sent nothing for silent, a PING to
// it being unanswered for unanswered, 0 if there is none; "" while it is not.
func (s Settings) verdict(silent, unanswered time.Duration, k kernel) string {
	switch {
	case k.known && k.deaf >= goneAfter && silent >= goneAfter:
		return fmt.Sprintf("no sign of the peer in %v", silent.Round(time.Second))
	case unanswered == 0:
	case !k.known && silent >= s.PingTimeout:
		return fmt.Sprintf("no answer in %v", s.PingTimeout)
	case silent >= max(s.FreezeTimeout, s.PingTimeout):
		return fmt.Sprintf("the peer's process has not answered in %v", silent.Round(time.Second))
	case unanswered >= 2*max(s.FreezeTimeout, s.PingTimeout):
		return "the peer sends, but does not read"
	}
	return ""
}

// suspect reports whether the peer has been silent for too long to be given new
// streams. c.mu is held.
func (c *conn) suspect() bool {
	return c.awaiting && time.Since(c.lastSign()) > max(suspectAfter, 4*c.roundTrip())
}

// probe sends a PING because somebody waits, and reports whether the peer is
// suspect already.
func (c *conn) probe() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.suspect() {
		return true
	}
	if !c.awaiting {
		c.sendPing()
		c.kick()
	}
	return false
}
