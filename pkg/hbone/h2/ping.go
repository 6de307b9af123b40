package h2

import (
	"encoding/binary"
	"time"

	"github.com/culvert-mesh/culvert/pkg/reason"
)

// pingState is guarded by conn.mu. At most one PING is under way; keepalive,
// round-trip measurement and drain share it.
type pingState struct {
	pingID   uint64 // of the newest PING
	awaiting bool   // it has not been answered
	pinged   time.Time
	timer    *time.Timer
	due      time.Time // when timer fires
	draining bool
	lastCall uint64 // the PING whose answer ends the last call of a drain; 0 none
}

// rttEvery is how often a busy connection measures its round trip.
const rttEvery = 100 * time.Millisecond

// sendPing queues a PING unless one is under way. c.mu is held.
func (c *conn) sendPing() {
	if c.awaiting {
		return
	}
	c.pingID++
	c.awaiting = true
	c.pinged = time.Now()
	var data [8]byte
	binary.BigEndian.PutUint64(data[:], c.pingID)
	c.ctl = appendPing(c.ctl, false, data)
	c.lookSoon()
}

// pong takes the answer to a PING.
func (c *conn) pong(data [8]byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	id := binary.BigEndian.Uint64(data[:])
	if !c.awaiting || id != c.pingID {
		return
	}
	c.awaiting = false
	rtt := max(int64(time.Since(c.pinged)), 1)
	if old := c.rtt.Load(); old != 0 {
		rtt = old + (rtt-old)/8
	}
	c.rtt.Store(rtt)
	switch {
	case c.lastCall == 0:
	case id >= c.lastCall:
		c.lastCallOver()
	default:
		c.sendPing()
	}
}

// startPings begins the keepalive.
func (c *conn) startPings() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.settings.PingInterval > 0 && c.err == nil {
		next := c.nextLook()
		c.due = time.Now().Add(next)
		c.timer = time.AfterFunc(next, c.keepalive)
	}
}

func (c *conn) stopPings() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.timer != nil {
		c.timer.Stop()
	}
}

// lookEvery is how often a connection looks whether an answer is overdue.
const lookEvery = 2 * time.Second

// overslept is how late a timer is when this process, or the machine, has stood
// still: the peer is not to blame for that time.
const overslept = time.Second

// nextLook returns how long keepalive sleeps: until the next PING is due, or
// shorter while one is under way or streams are open. c.mu is held.
func (c *conn) nextLook() time.Duration {
	if c.awaiting || len(c.streams) > 0 {
		return min(c.settings.PingInterval, lookEvery)
	}
	return max(c.settings.PingInterval-time.Since(c.pinged), time.Millisecond)
}

// lookSoon sees to it that keepalive looks for the answer to the PING that was just
// sent. c.mu is held.
func (c *conn) lookSoon() {
	if next := c.nextLook(); c.timer != nil && c.err == nil && time.Until(c.due) > next {
		c.due = time.Now().Add(next)
		c.timer.Reset(next)
	}
}

// keepalive probes the peer every PingInterval, gives up a peer that is gone, and
// closes a connection that has been idle for long.
func (c *conn) keepalive() {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	now := time.Now()
	if now.Sub(c.due) > overslept {
		c.pinged = now
	}
	if why := c.overdue(now); why != "" {
		c.mu.Unlock()
		c.unanswered(why)
		return
	}
	if !c.awaiting && now.Sub(c.pinged) >= c.settings.PingInterval {
		c.sendPing()
	}
	if c.idleFor > 0 && len(c.streams) == 0 && c.slots == 0 && now.Sub(c.idle) >= c.idleFor {
		c.away, c.finish = true, true
		c.ctl = appendGoAway(c.ctl, 0, 0, "")
	}
	next := c.nextLook()
	c.due = now.Add(next)
	c.timer.Reset(next)
	c.kick()
	c.mu.Unlock()
}

// lastSign returns when the peer last showed that it lives, or was asked to.
func (c *conn) lastSign() time.Time {
	if heard := time.Unix(0, c.heard.Load()); heard.After(c.pinged) {
		return heard
	}
	return c.pinged
}

// unanswered ends a connection whose peer is gone.
func (c *conn) unanswered(why string) {
	if !c.client {
		c.goAwayNow(0, "keepalive timed out")
	}
	c.fail(reason.Newf(reason.TunnelClosed, "keepalive", c.t.RemoteAddr().String(), "%s", why))
	time.AfterFunc(linger, c.cut)
}

// roundTrip returns the smoothed round trip, 0 while it is unknown.
func (c *conn) roundTrip() time.Duration { return time.Duration(c.rtt.Load()) }

// measure takes the round trip of a busy connection now and then. c.mu is held.
func (c *conn) measure() {
	if !c.awaiting && time.Since(c.pinged) > rttEvery {
		c.sendPing()
	}
}
