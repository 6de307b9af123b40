package h2

import (
	"time"

	"golang.org/x/net/http2"
)

// What a peer may do that costs it less than us is counted, and has a limit that
// no honest peer comes near. Beyond it the connection ends with
// ENHANCE_YOUR_CALM. Everything else that a peer can make us keep is bounded by
// windows, by the budget, and by the sizes in frame.go.

// Abuse names what a peer did too much of. Metrics and logs use these words.
type Abuse string

// Kinds of abuse.
const (
	AbuseResets      Abuse = "resets"       // streams reset before their answer (CVE-2023-44487)
	AbuseErrors      Abuse = "errors"       // frames that are wrong for their stream
	AbuseEmpty       Abuse = "empty frames" // DATA without bytes
	AbuseControl     Abuse = "control frames"
	AbuseCredit      Abuse = "tiny credit"     // WINDOW_UPDATE of a few bytes; frames for streams that are gone
	AbuseHeaders     Abuse = "header sections" // too large, or in too many pieces
	AbuseUnread      Abuse = "answers unread"  // it makes us answer and does not read
	AbuseSlow        Abuse = "slow handshake"  // TLS or the preface not done in time
	AbuseHandshakes  Abuse = "handshakes"      // more at once than a source, or all, may have
	AbuseConnections Abuse = "connections"     // the same of connections
)

// rate is how often something may happen: burst at once, perSecond on and on.
type rate struct{ perSecond, burst float64 }

// The limits, per connection.
var (
	// A request that is given up at once costs two: an honest proxy sends some when
	// its clients hang up. Streams that are served take the count down again.
	offenceRate = rate{50, 500}
	// PING, SETTINGS, PRIORITY, GOAWAY and frames of unknown types. We ourselves
	// measure round trips ten times a second.
	controlRate = rate{200, 2000}
	// There are peers that give credit for every read.
	creditRate = rate{20_000, 50_000}
)

// skippedPart is how many bytes of a frame of an unknown type count as one frame.
const skippedPart = 4 << 10

// hasty is how soon a stream must be reset to count: who waits so long for an answer
// holds one of its streams meanwhile, as every request does, and may well be an
// application that has no patience with its destination.
const hasty = 100 * time.Millisecond

// smallCredit is the size below which a WINDOW_UPDATE is counted.
const smallCredit = 1 << 10

// allowance is what is used up of a rate. The zero value is full.
type allowance struct {
	used float64
	at   time.Time
}

// take uses up n of the allowance; false when there is not so much left.
func (a *allowance) take(now time.Time, r rate, n float64) bool {
	if !a.at.IsZero() {
		a.used = max(0, a.used-now.Sub(a.at).Seconds()*r.perSecond)
	}
	a.at = now
	a.used += n
	return a.used <= r.burst
}

// give takes n back.
func (a *allowance) give(n float64) { a.used = max(0, a.used-n) }

// meters belong to the reader.
type meters struct {
	control allowance
	credit  allowance
}

// meter counts a frame that is cheap to send.
func (c *conn) meter(f http2.Frame) error {
	switch f := f.(type) {
	case *http2.PingFrame, *http2.SettingsFrame, *http2.PriorityFrame, *http2.GoAwayFrame:
		return c.meterControl(1)
	case *http2.WindowUpdateFrame:
		if f.Increment < smallCredit {
			return c.meterCredit()
		}
	case *http2.RSTStreamFrame:
		return c.meterCredit()
	case *http2.MetaHeadersFrame:
		if c.leaving() { // it costs a decoder's work and is not answered
			return c.meterCredit()
		}
	}
	return nil
}

func (c *conn) meterControl(n float64) error {
	if c.meters.control.take(c.clock(), controlRate, n) {
		return nil
	}
	return calmErrorf(AbuseControl, "too many control frames")
}

func (c *conn) meterCredit() error {
	if c.meters.credit.take(c.clock(), creditRate, 1) {
		return nil
	}
	return calmErrorf(AbuseCredit, "too many frames that give almost nothing")
}

// abused counts what is harmless now and then.
func (c *conn) abused(what Abuse, weight float64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.offences.take(c.clock(), offenceRate, weight) {
		return nil
	}
	return calmErrorf(what, "too many %s", what)
}

// calmErrorf ends a connection whose peer does too much of something.
func calmErrorf(what Abuse, format string, args ...any) error {
	e := connErrorf(http2.ErrCodeEnhanceYourCalm, format, args...).(*connError)
	e.abuse = what
	return e
}
