// Package spire obtains certificates from a SPIRE agent on the same node.
//
//	pods:     Delegated Identity API ── a stream per identity ──▶ key, chain
//	            selectors k8s:ns:<namespace>, k8s:sa:<service account>      │
//	          Delegated Identity API ── one stream ──▶ bundles of all       ├─▶ SVID ─▶ certs.Cache
//	            trust domains that the agent knows                          │
//	ourselves: Workload API ── one stream ──▶ key, chain, bundles ──────────┘
//
// The agent makes the keys and renews the certificates; each renewal and each
// change of a bundle is delivered at once. An SVID trusts peers of its own trust
// domain by that domain's bundle, and peers of the domains with which its
// registration entry federates by theirs, and nobody else.
//
// A stream that breaks, or an entry that goes, changes nothing until the
// certificate ends. Streams are tried again with a back-off. The ztunnel must be
// one of the agent's authorized_delegates.
//
// An Issuer is safe for concurrent use.
package spire

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	delegated "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/delegatedidentity/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/culvert-mesh/culvert/pkg/certs"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
	"github.com/culvert-mesh/culvert/pkg/run"
)

// Config configures an Issuer.
type Config struct {
	AdminSocket    string        // of the agent: a path, or unix:///path
	WorkloadSocket string        // the same; "" = our own certificate is delegated, too
	Own            mesh.Identity // ours; zero = none
	MinBackoff     time.Duration // wait after a stream's first failure; 0 = 100 ms
	MaxBackoff     time.Duration // 0 = 10 s
	Log            *slog.Logger  // nil = none
}

// Issuer implements certs.Streamer.
type Issuer struct {
	cfg     Config
	conn    *grpc.ClientConn
	agent   delegated.DelegatedIdentityClient
	ctx     context.Context // of the streams; ends with Close
	cancel  context.CancelFunc
	running sync.WaitGroup
	receive func(*certs.SVID)

	mu        sync.Mutex
	closed    bool
	streams   map[mesh.Identity]*stream
	bundles   bundles // nil until the agent sent them
	bundleErr error   // why it has not
}

// bundles are the roots of each trust domain.
type bundles map[string][]*x509.Certificate

// stream is one identity that somebody needs. All but id and cancel are guarded by
// Issuer.mu.
type stream struct {
	id     mesh.Identity
	cancel context.CancelFunc

	got  *material   // what the agent sent last; nil = nothing
	svid *certs.SVID // made of it
	bad  error       // why none could be made of it
	err  error       // why the agent has sent nothing newer

	changed chan struct{} // closed and replaced at a change
}

// New returns an Issuer that connects at the first need.
func New(cfg Config) (*Issuer, error) {
	if cfg.MinBackoff == 0 {
		cfg.MinBackoff = 100 * time.Millisecond
	}
	if cfg.MaxBackoff == 0 {
		cfg.MaxBackoff = 10 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.AdminSocket == "" {
		return nil, errors.New("SPIRE agent: no socket of its Delegated Identity API")
	}
	conn, err := grpc.NewClient(socketURL(cfg.AdminSocket),
		grpc.WithTransportCredentials(insecure.NewCredentials()), // a unix socket: the agent asks the kernel who we are
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		// The streams pace themselves; the channel must not hold them up much longer.
		grpc.WithConnectParams(grpc.ConnectParams{
			MinConnectTimeout: 2 * time.Second,
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
		}))
	if err != nil {
		return nil, fmt.Errorf("SPIRE agent %s: %w", cfg.AdminSocket, err)
	}
	i := &Issuer{cfg: cfg, conn: conn, agent: delegated.NewDelegatedIdentityClient(conn), streams: make(map[mesh.Identity]*stream)}
	i.ctx, i.cancel = context.WithCancel(context.Background())
	return i, nil
}

// socketURL takes a path or a URL of the form that SPIFFE_ENDPOINT_SOCKET has.
func socketURL(s string) string {
	if strings.Contains(s, ":") {
		return s
	}
	return "unix:" + s
}

// Deliver implements certs.Streamer.
func (i *Issuer) Deliver(receive func(*certs.SVID)) { i.receive = receive }

// Run follows the trust bundles until ctx ends, and then closes the Issuer.
func (i *Issuer) Run(ctx context.Context) error {
	defer i.Close()
	i.retry(ctx, i.followBundles)
	return nil
}

// Close ends all streams. It may be called more than once.
func (i *Issuer) Close() error {
	i.mu.Lock()
	already := i.closed
	i.closed = true
	i.mu.Unlock()
	i.cancel()
	i.running.Wait()
	if already {
		return nil
	}
	return i.conn.Close()
}

// Issue implements certs.Issuer. It begins the stream of id, waits for a first
// outcome and returns what the latest is. Errors carry reason.NoCertificate.
func (i *Issuer) Issue(ctx context.Context, id mesh.Identity) (*certs.SVID, error) {
	st, err := i.stream(id)
	if err != nil {
		return nil, noCertificate(id, err)
	}
	for {
		i.mu.Lock()
		svid, err, known := st.outcome(time.Now())
		changed := st.changed
		i.mu.Unlock()
		switch {
		case known && err != nil:
			return nil, noCertificate(id, err)
		case known:
			return svid, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, noCertificate(id, i.waitingFor(ctx))
		}
	}
}

// outcome returns the certificate, or why there is none; known is false as long as
// the agent has not told enough to say. Issuer.mu is held.
func (st *stream) outcome(now time.Time) (svid *certs.SVID, err error, known bool) {
	switch {
	case st.svid != nil && now.Before(st.svid.NotAfter):
		return st.svid, nil, true
	case st.err != nil:
		return nil, st.err, true
	case st.bad != nil:
		return nil, st.bad, true
	case st.svid != nil:
		return nil, fmt.Errorf("the certificate ended at %s and SPIRE has sent no other", st.svid.NotAfter.UTC().Format(time.RFC3339)), true
	}
	return nil, nil, false
}

func noCertificate(id mesh.Identity, cause error) error {
	return reason.New(reason.NoCertificate, "get certificate from SPIRE", id.String(), cause)
}

// waitingFor says for what a stream without any outcome waits.
func (i *Issuer) waitingFor(ctx context.Context) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.bundles == nil && i.bundleErr != nil {
		return fmt.Errorf("no trust bundle: %w", i.bundleErr)
	}
	return fmt.Errorf("no answer from the agent: %w", context.Cause(ctx))
}

// stream returns the stream of id and begins it if there is none.
func (i *Issuer) stream(id mesh.Identity) (*stream, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if st := i.streams[id]; st != nil {
		return st, nil
	}
	if i.closed {
		return nil, errors.New("stopped")
	}
	st := &stream{id: id, changed: make(chan struct{})}
	var ctx context.Context
	ctx, st.cancel = context.WithCancel(i.ctx)
	i.streams[id] = st
	i.running.Add(1)
	go i.follow(ctx, st)
	return st, nil
}

// follow keeps one stream going until it is released.
func (i *Issuer) follow(ctx context.Context, st *stream) {
	defer i.running.Done()
	defer st.cancel()
	if i.cfg.WorkloadSocket != "" && st.id == i.cfg.Own {
		i.retry(ctx, func(ctx context.Context, worked func()) error { return i.followOwn(ctx, st, worked) })
	} else {
		i.retry(ctx, func(ctx context.Context, worked func()) error { return i.followPod(ctx, st, worked) })
	}
}

// retry calls try again and again until ctx ends. When try says that it worked, the
// back-off begins anew. An error is logged when it is another than the last.
func (i *Issuer) retry(ctx context.Context, try func(ctx context.Context, worked func()) error) {
	wait := run.NewBackoff(i.cfg.MinBackoff, i.cfg.MaxBackoff)
	last := ""
	worked := func() { wait.Reset(); last = "" }
	for ctx.Err() == nil {
		if err := try(ctx, worked); err != nil && ctx.Err() == nil && err.Error() != last {
			last = err.Error()
			i.cfg.Log.Warn("stream from SPIRE broke", "error", err)
		}
		if run.Sleep(ctx, wait.Next()) != nil {
			return
		}
	}
}

// Release implements certs.Streamer.
func (i *Issuer) Release(id mesh.Identity) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if st := i.streams[id]; st != nil {
		delete(i.streams, id)
		st.cancel()
	}
}
