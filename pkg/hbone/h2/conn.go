package h2

import (
	"bytes"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

// linger is how long a closed connection goes on discarding what the peer still
// sends, so that a reset does not overtake our last frames.
const linger = time.Second

// farewell is how long a connection that ended in good order waits for the peer to
// close it too: what the kernel still has to send may take its time, and a socket
// that is closed while the peer has something to say resets it.
const farewell = 10 * time.Second

// transport is what a conn needs of the TLS connection below it: *tlsconn.Conn.
type transport interface {
	Wait() error // until Records has something; holds no buffer
	// Records appends the plaintext of what has arrived, valid until the next call;
	// it waits only when nothing has.
	Records(dst [][]byte) ([][]byte, error)
	WriteRecords(runs [][]byte) error // each laid out as tlsconn says; destroys them
	CloseWrite() error
	Close() error
	LocalAddr() netip.AddrPort
	RemoteAddr() netip.AddrPort
}

// conn is one HTTP/2 connection, either end of it.
type conn struct {
	t         transport
	settings  Settings
	budget    *hbone.Budget
	log       *slog.Logger
	client    bool
	socket    syscall.RawConn     // below t, to ask the kernel about; nil if unknown
	onClose   func(err error)     // called once, when the connection is of no more use
	onLeaving func()              // called at the peer's GOAWAY; nil = nobody asks
	idleFor   time.Duration       // client: close after so long without streams; 0 never
	peer      []*x509.Certificate // that the peer presented, leaf first

	closed chan struct{} // closed when the transport is
	rtt    atomic.Int64  // smoothed round trip, ns; 0 while unknown
	rttMin atomic.Int64  // the shortest that rtt has been

	clock func() time.Time // of what is metered: see limits.go
	serverSide
	readState // owned by the reader

	mu       sync.Mutex
	streams  map[uint32]*stream
	nextID   uint32 // client: of the next stream
	lastID   uint32 // server: of the newest stream that was taken on
	seenID   uint32 // server: of the newest stream
	total    uint64 // streams ever
	slots    int    // client: room promised to openers that have not opened yet
	opened   time.Time
	idle     time.Time  // client: since when without streams
	err      error      // why the connection is of no more use
	finish   bool       // end the connection once everything is written
	ended    bool       // our direction has ended
	away     bool       // no new streams: GOAWAY was sent or received
	peerSet  bool       // the peer's SETTINGS have arrived
	window   recvWindow // what the peer may send
	offences allowance  // of what only an attacker piles up: see limits.go
	ignored  resetRing  // streams that we have reset

	sendState
	pingState
}

// readState belongs to the reader goroutine.
type readState struct {
	parser parser
	frames *http2.Framer // parses everything but DATA
	frame  bytes.Reader  // what frames reads
	heard  atomic.Int64  // when something last arrived, UnixNano
	meters               // of what is cheap to send
	bufs   [][]byte      // what has arrived
	late   arrival       // DATA of bufs that has not been delivered yet
}

// sendState is guarded by conn.mu.
type sendState struct {
	ctl         []byte    // control frames to be written
	ready       ring      // streams with a block to write
	writing     bool      // somebody is in writeBatch
	sendWin     int64     // the peer's connection window
	blocked     []*stream // waiting for sendWin
	peerWindow  int64     // initial window of new streams
	peerFrame   int       // largest frame the peer accepts
	peerStreams int       // streams the peer allows
	peerHeaders int       // largest header section the peer accepts; 0 any
	enc         *hpack.Encoder
	encBuf      bytes.Buffer
	batch       batch
	queueing    time.Duration // smoothed time between submitting and writing
}

// newConn makes a connection over t and queues our preface. Nothing runs yet.
func newConn(t transport, client bool, set Settings, budget *hbone.Budget, log *slog.Logger) *conn {
	set = set.withDefaults(client)
	c := &conn{
		t: t, settings: set, budget: budget, log: log, client: client,
		closed:  make(chan struct{}),
		streams: make(map[uint32]*stream),
		nextID:  1,
		opened:  time.Now(),
		clock:   time.Now,
	}
	c.idle = c.opened
	c.window = newRecvWindow(set.ConnWindow, set.MaxConnWindow)
	c.frames = http2.NewFramer(io.Discard, &c.frame)
	c.frames.SetMaxReadFrameSize(uint32(set.MaxFrameSize))
	c.frames.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	c.frames.MaxHeaderListSize = uint32(set.MaxHeaderList)
	c.parser.preface = !client
	c.sendWin, c.peerWindow, c.peerFrame, c.peerStreams = defaultWindow, defaultWindow, defaultFrameSize, 100
	c.enc = hpack.NewEncoder(&c.encBuf)
	return c
}

// greet queues the preface: SETTINGS and the connection's window.
func (c *conn) greet(maxStreams int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	set := []http2.Setting{
		{ID: http2.SettingInitialWindowSize, Val: uint32(c.settings.StreamWindow)},
		{ID: http2.SettingMaxFrameSize, Val: uint32(c.settings.MaxFrameSize)},
		{ID: http2.SettingMaxHeaderListSize, Val: uint32(c.settings.MaxHeaderList)},
	}
	if c.client {
		c.ctl = append(c.ctl, preface...)
		set = append(set, http2.Setting{ID: http2.SettingEnablePush, Val: 0})
	} else {
		set = append(set, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: uint32(maxStreams)})
	}
	c.ctl = appendSettings(c.ctl, set...)
	if more := c.settings.ConnWindow - defaultWindow; more > 0 {
		c.ctl = appendWindowUpdate(c.ctl, 0, more)
	}
	c.sendPing() // the first round trip
	c.kick()
}

// run reads until the connection ends and returns why: nil when it ended in
// good order. The transport is closed when it returns.
func (c *conn) run() error {
	defer close(c.closed)
	defer c.stopPings()
	c.reserveWindow()
	err := c.readLoop()
	most := maxDiscard
	if ce, ok := errors.AsType[*connError](err); ok {
		c.goAwayNow(ce.code, ce.why)
		if ce.abuse != "" {
			most = maxAbuserDiscard
		}
	}
	err = c.lost(err)
	c.fail(err)
	c.discard(most)
	_ = c.t.Close()
	c.mu.Lock()
	err = c.err
	c.mu.Unlock()
	if errors.Is(err, errFinished) {
		return nil
	}
	return err
}

// errFinished is the err of a connection that ended in good order.
var errFinished = errors.New("connection finished")

// lost gives the end of the input its reason.
func (c *conn) lost(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.err != nil:
		return c.err
	case !c.peerSet && remoteAlert(err):
		return reason.New(reason.TLSFailure, "open tunnel", c.t.RemoteAddr().String(), err)
	case !c.peerSet:
		return reason.New(reason.TunnelHandshake, "open tunnel", c.t.RemoteAddr().String(), err)
	case len(c.streams) == 0 && (c.finish || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)):
		return errFinished // without a stream there is nothing that a cut could hide
	}
	return reason.New(reason.TunnelClosed, "read tunnel", c.t.RemoteAddr().String(), err)
}

// remoteAlert reports whether err is the peer's TLS alert: in TLS 1.3 a client
// learns only from its first read that its certificate was refused.
func remoteAlert(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "remote error"
}

// fail ends every stream; the connection is of no more use. The first err counts.
func (c *conn) fail(err error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = err
	c.away = true
	c.finish = true
	victims := make([]*stream, 0, len(c.streams))
	for _, s := range c.streams {
		victims = append(victims, s)
	}
	c.window.release(c.budget)
	c.kick()
	c.mu.Unlock()
	for _, s := range victims {
		s.abort(err)
	}
	if c.onClose != nil {
		c.onClose(err)
	}
}

// goAwayNow queues a GOAWAY that ends the connection.
func (c *conn) goAwayNow(code http2.ErrCode, why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.ctl = appendGoAway(c.ctl, c.lastID, code, why)
	}
}

// maxDiscard is how many bytes a connection that has ended goes on reading: what
// its windows let an honest peer have under way. From one that did too much of
// something it takes less.
const (
	maxDiscard       = 32 << 20
	maxAbuserDiscard = 256 << 10
)

// discard reads until the peer closes, the time to linger is over, or so much has
// come.
func (c *conn) discard(most int) {
	stop := time.AfterFunc(linger, c.cut)
	defer stop.Stop()
	for {
		var err error
		if c.bufs, err = c.t.Records(c.bufs[:0]); err != nil {
			return
		}
		for _, b := range c.bufs {
			most -= len(b)
		}
		if most < 0 {
			return
		}
	}
}

// cut closes the transport, whatever is going on.
func (c *conn) cut() { _ = c.t.Close() }

// kill ends the connection at once and without a word.
func (c *conn) kill(err error) {
	c.fail(err)
	c.cut()
}

// drain lets the open streams finish and then ends the connection. A server
// first announces it, with a GOAWAY that still admits what is on its way, and
// names the last stream when a round trip has passed (RFC 9113 §6.8).
func (c *conn) drain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.draining || c.err != nil {
		return
	}
	c.draining = true
	if c.client {
		c.away = true
		c.ctl = appendGoAway(c.ctl, 0, http2.ErrCodeNo, "")
	} else {
		c.ctl = appendGoAway(c.ctl, maxStreamID, http2.ErrCodeNo, "")
		c.lastCall = c.pingID + 1 // of a PING that follows the GOAWAY
		c.sendPing()
	}
	c.finishIfIdle()
	c.kick()
}

// lastCallOver sends the GOAWAY that names the last stream.
func (c *conn) lastCallOver() {
	c.lastCall = 0
	c.away = true
	c.ctl = appendGoAway(c.ctl, c.lastID, http2.ErrCodeNo, "")
	c.finishIfIdle()
}

// finishIfIdle ends the connection when it takes no streams and has none.
func (c *conn) finishIfIdle() {
	if c.away && len(c.streams) == 0 && c.slots == 0 {
		c.finish = true
	}
}

// remove forgets a stream whose two directions have ended. c.mu is held.
func (c *conn) remove(s *stream) {
	if s.removed {
		return
	}
	s.removed = true
	delete(c.streams, s.id)
	close(s.done)
	if len(c.streams) == 0 {
		c.idle = time.Now()
		c.finishIfIdle()
		if c.finish {
			c.kick()
		}
	}
}

// resetRing remembers the streams that were refused or reset here most recently,
// whose frames may still be on their way.
type resetRing struct {
	ids  []uint32
	next int
}

// maxResets is how many streams a resetRing remembers.
const maxResets = 256

func (r *resetRing) add(id uint32) {
	if len(r.ids) < maxResets {
		r.ids = append(r.ids, id)
		return
	}
	r.ids[r.next%maxResets] = id
	r.next++
}

func (r *resetRing) has(id uint32) bool { return slices.Contains(r.ids, id) }
