package h2

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/culvert-mesh/culvert/pkg/hbone"
)

// Settings are the numbers of one end of a connection. A zero field takes its
// default.
type Settings struct {
	StreamWindow    int           // bytes a stream may have in flight to us at first; default 256 KiB
	MaxStreamWindow int           // what it may grow to, out of the budget; default 16 MiB
	ConnWindow      int           // bytes all streams may have in flight at first; default 256 KiB
	MaxConnWindow   int           // what it may grow to, out of the budget; default 16 MiB
	MaxFrameSize    int           // largest frame accepted, 16 KiB to 16 MiB-1; default 1 MiB
	MaxHeaderList   int           // largest header section accepted; default 16 KiB (client), 64 KiB (server)
	PingInterval    time.Duration // between keepalive PINGs; default 10 s, negative for none
	PingTimeout     time.Duration // for the answer to a PING; default 20 s
	FreezeTimeout   time.Duration // the same while the peer's kernel still answers: its process stands still; default 2 min

	// QueueDelay, unless nil, is told how long data that had to wait for its turn
	// has waited. It is called often and must be quick.
	QueueDelay func(time.Duration)
}

// PoolConfig configures a Pool.
type PoolConfig struct {
	// Dial connects to a peer's tunnel port, in the workload's namespace.
	Dial func(ctx context.Context, addr netip.AddrPort) (*net.TCPConn, error)
	// TLS returns the configuration for a new connection to the peer: our
	// certificate and the check of the peer's.
	TLS func(ctx context.Context, to hbone.Peer) (*tls.Config, error)

	MaxStreams     int           // per connection; default 100
	IdleTimeout    time.Duration // a connection without streams is closed after this; default 5 min
	ConnectTimeout time.Duration // for the TCP connect; default 10 s
	Settings       Settings
	Budget         *hbone.Budget // nil: no limit
	Log            *slog.Logger  // nil: none

	// Recheck, unless nil, is asked whether a connected peer, by its certificates
	// (leaf first), is still accepted: once when a connection is ready, and again
	// at each (*Pool).Recheck. Its error ends the connection and its streams.
	Recheck func(peer []*x509.Certificate) error

	ConnError  func(to hbone.Peer, err error) // a dial or a handshake that failed; may be nil; must not block
	ConnOpened func(to hbone.Peer)            // may be nil; must not block
	ConnClosed func(to hbone.Peer, err error) // may be nil; must not block
	// ConnLeaving tells that a peer takes no more streams on a connection, whose
	// streams are Leaving from now on. May be nil; must not block.
	ConnLeaving func(to hbone.Peer)
}

// ServerConfig configures a Server.
type ServerConfig struct {
	// TLS returns the configuration for one accepted connection, so that a
	// renewed certificate serves from the next connection on.
	TLS     func(ctx context.Context) (*tls.Config, error)
	Handler hbone.Handler

	// Gate bounds the handshakes under way; the servers of a node share one. nil: one
	// of the server's own, with a Gate's defaults.
	Gate *Gate
	// MaxConns is how many connections one source address may have; default 1024.
	MaxConns         int
	MaxStreams       int           // per connection, advertised; default 200
	HandshakeTimeout time.Duration // for TLS and the preface; default 10 s
	Settings         Settings
	Budget           *hbone.Budget // nil: no limit
	Log              *slog.Logger  // nil: none

	// Recheck is as PoolConfig's.
	Recheck func(peer []*x509.Certificate) error

	ConnError func(remote netip.AddrPort, err error) // a handshake that failed; may be nil; must not block
	// Abused tells that a peer did too much of something and lost its connection or
	// did not get one. May be nil; must not block.
	Abused func(remote netip.AddrPort, what Abuse)

	clock func() time.Time // that what peers do too often is measured with; nil is time.Now
}

// ConnInfo describes one connection of a pool, for people.
type ConnInfo struct {
	Peer    hbone.Peer
	Local   netip.AddrPort
	Opened  time.Time
	Streams int    // open now
	Total   uint64 // opened ever
	RTT     time.Duration
	State   string // "open", "draining"
}

func (s Settings) withDefaults(client bool) Settings {
	def := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	def(&s.StreamWindow, 256<<10)
	def(&s.MaxStreamWindow, 16<<20)
	def(&s.ConnWindow, 256<<10)
	def(&s.MaxConnWindow, 16<<20)
	def(&s.MaxFrameSize, 1<<20)
	if client {
		def(&s.MaxHeaderList, 16<<10)
	} else {
		def(&s.MaxHeaderList, 64<<10)
	}
	if s.PingInterval == 0 {
		s.PingInterval = 10 * time.Second
	}
	if s.PingTimeout == 0 {
		s.PingTimeout = 20 * time.Second
	}
	if s.FreezeTimeout == 0 {
		s.FreezeTimeout = 2 * time.Minute
	}
	return s
}
