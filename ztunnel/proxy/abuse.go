package proxy

import (
	"net/netip"
	"sync"
	"time"

	"github.com/culvert-mesh/culvert/pkg/hbone/h2"
)

// abuse is what the pods of a node share against peers that do too much of
// something. The zero value is ready.
type abuse struct {
	once sync.Once
	gate *h2.Gate // of handshakes

	mu     sync.Mutex
	logged time.Time
	silent int // not logged since
}

// abuseLogEvery is how often abuse is worth a line: a flood of it must not become
// one of the log.
const abuseLogEvery = time.Second

// handshakes returns the node's gate.
func (a *abuse) handshakes() *h2.Gate {
	a.once.Do(func() { a.gate = h2.NewGate(0, 0) })
	return a.gate
}

// worthALine reports whether to log now, and how much went without since.
func (a *abuse) worthALine(now time.Time) (yes bool, silent int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if now.Sub(a.logged) < abuseLogEvery {
		a.silent++
		return false, 0
	}
	silent, a.silent, a.logged = a.silent, 0, now
	return true, silent
}

// abused tells of a peer that did too much of something.
func (p *Pod) abused(remote netip.AddrPort, what h2.Abuse) {
	p.node.Observed.abused(remote, what)
	if yes, silent := p.node.abuse.worthALine(time.Now()); yes {
		p.node.Log.Warn("a peer does too much", "pod", p.info, "peer", remote, "what", string(what), "unlogged", silent)
	}
}
