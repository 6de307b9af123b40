package zds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netns"
	"github.com/culvert-mesh/culvert/pkg/packet"
	wire "github.com/culvert-mesh/culvert/pkg/wire/zds"
)

// errGone says that the peer's connection ended before it answered.
var errGone = errors.New("ztunnel disconnected")

// peer is one connected ztunnel. Two goroutines work for it: run writes requests
// one at a time, read receives what the ztunnel says. An answer that comes after
// its request timed out still belongs to that request: run takes no further
// request until it is in, so answers can never be mistaken for one another.
type peer struct {
	conn *net.UnixConn
	cfg  ServerConfig
	log  *slog.Logger

	requests chan *request
	acks     chan string   // error texts, from read
	again    chan struct{} // the peer became the newest: compare its pods
	gone     chan struct{} // closed when run returns
	ended    chan struct{} // closed when read returns, after readErr is set
	readErr  error

	// Of run's goroutine only.
	owes *time.Timer // running while an ack is overdue
	has  map[mesh.PodUID]netns.ID
}

// request is one Add or Delete on its way to a peer, which owns its namespace.
type request struct {
	kind     kind
	workload Workload
	done     chan error
}

func newPeer(conn *net.UnixConn, cfg ServerConfig, seq int) *peer {
	return &peer{
		conn: conn, cfg: cfg, log: cfg.Log.With("ztunnel", seq),
		requests: make(chan *request), acks: make(chan string), again: make(chan struct{}, 1),
		gone: make(chan struct{}), ended: make(chan struct{}), has: map[mesh.PodUID]netns.ID{},
	}
}

// do hands a request to the peer and waits for the answer. A request whose ctx
// ends while it is under way is carried out all the same.
func (p *peer) do(ctx context.Context, r *request) error {
	r.done = make(chan error, 1)
	select {
	case p.requests <- r:
	case <-p.gone:
		r.workload.NS.Close()
		return errGone
	case <-ctx.Done():
		r.workload.NS.Close()
		return context.Cause(ctx)
	}
	select {
	case err := <-r.done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// resync asks the peer to be sent the pods that it does not have.
func (p *peer) resync() {
	select {
	case p.again <- struct{}{}:
	default:
	}
}

// run is the peer's session: hello, snapshot, then requests as they come.
func (p *peer) run(ctx context.Context) error {
	defer close(p.gone)
	if err := p.hello(); err != nil {
		return err
	}
	go p.read()
	defer func() { p.conn.Close(); p.drain() }()
	if err := p.snapshot(ctx); err != nil {
		return err
	}
	for {
		if err := p.next(ctx); err != nil {
			return err
		}
	}
}

func (p *peer) hello() error {
	p.conn.SetReadDeadline(time.Now().Add(p.cfg.AckTimeout))
	defer p.conn.SetReadDeadline(time.Time{})
	var buf [wire.MaxPacket + 1]byte
	n, fds, err := packet.Read(p.conn, buf[:], maxDescriptors)
	packet.Close(fds...)
	if err != nil {
		return fmt.Errorf("read hello: %w", err)
	}
	var h wire.ZdsHello
	if err := proto.Unmarshal(buf[:n], &h); err != nil {
		return fmt.Errorf("read hello: %w: %w", packet.ErrMalformed, err)
	}
	p.log.Info("ztunnel connected", "version", h.GetVersion().String())
	return nil
}

// read receives acknowledgements until the connection ends; so a dead ztunnel is
// noticed at once and not when it is next needed.
func (p *peer) read() {
	defer close(p.ended)
	var buf [wire.MaxPacket + 1]byte
	for {
		n, fds, err := packet.Read(p.conn, buf[:], maxDescriptors)
		packet.Close(fds...)
		var text string
		if err == nil {
			text, err = decodeAck(buf[:n])
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = errors.New("closed by ztunnel")
			}
			p.readErr = err
			return
		}
		select {
		case p.acks <- text:
		case <-p.gone:
			return
		}
	}
}

// drain waits for read to end; run closed the connection.
func (p *peer) drain() {
	for {
		select {
		case <-p.acks:
		case <-p.ended:
			return
		}
	}
}

// next waits for one event and deals with it.
func (p *peer) next(ctx context.Context) error {
	requests, again := p.requests, p.again
	var overdue <-chan time.Time
	if p.owes != nil {
		requests, again, overdue = nil, nil, p.owes.C
	}
	select {
	case r := <-requests:
		err := p.carryOut(ctx, r)
		r.done <- err
		return p.fatal(err)
	case <-again:
		return p.snapshotAdds(ctx, true)
	case text := <-p.acks:
		return p.unexpected(text)
	case <-overdue:
		return fmt.Errorf("no acknowledgement within %s", p.cfg.LateTimeout)
	case <-p.ended:
		return p.readErr
	case <-ctx.Done():
		return ctx.Err()
	}
}

// unexpected takes an ack that no request waits for any more.
func (p *peer) unexpected(text string) error {
	if p.owes == nil {
		return fmt.Errorf("%w: an acknowledgement that nothing asked for", packet.ErrMalformed)
	}
	p.owes.Stop()
	p.owes = nil
	p.log.Warn("late acknowledgement", "error", text)
	return nil
}

// fatal returns err when the session cannot go on after it.
func (p *peer) fatal(err error) error {
	var refused *RefusedError
	if err == nil || errors.As(err, &refused) || errors.Is(err, ErrTimeout) {
		return nil
	}
	return err
}

func (p *peer) carryOut(ctx context.Context, r *request) error {
	if r.kind == kindDelete {
		delete(p.has, r.workload.UID)
		return p.roundTrip(ctx, encodeDelete(r.workload.UID), nil)
	}
	return p.add(ctx, r.workload)
}

// add sends an Add and closes the namespace's descriptor.
func (p *peer) add(ctx context.Context, w Workload) error {
	defer w.NS.Close()
	if err := p.roundTrip(ctx, encodeAdd(w), w.NS); err != nil {
		return err
	}
	p.has[w.UID] = w.NS.ID()
	return nil
}

// roundTrip sends one request and waits for its answer. A request that does not
// fit into a packet is refused here, and the session goes on.
func (p *peer) roundTrip(ctx context.Context, m proto.Message, ns *netns.NS) error {
	if size := proto.Size(m); size > wire.MaxPacket {
		return &RefusedError{fmt.Sprintf("not sent: %d bytes, a packet holds %d", size, wire.MaxPacket)}
	}
	p.conn.SetWriteDeadline(time.Now().Add(p.cfg.AckTimeout))
	if err := writePacket(p.conn, m, ns); err != nil {
		return fmt.Errorf("%w: send: %w", errGone, err)
	}
	t := time.NewTimer(p.cfg.AckTimeout)
	defer t.Stop()
	select {
	case text := <-p.acks:
		if text != "" {
			return &RefusedError{text}
		}
		return nil
	case <-t.C:
		p.owes = time.NewTimer(p.cfg.LateTimeout)
		return ErrTimeout
	case <-p.ended:
		return fmt.Errorf("%w: %w", errGone, p.readErr)
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", errGone, ctx.Err())
	}
}

// snapshot sends every pod that is in the mesh and says that this was all.
func (p *peer) snapshot(ctx context.Context) error {
	if err := p.snapshotAdds(ctx, false); err != nil {
		return err
	}
	return p.patient(ctx, p.roundTrip(ctx, encodeSnapshotSent(), nil))
}

// snapshotAdds sends the pods of the snapshot one by one; with onlyMissing those
// that this peer has not acknowledged yet. A pod that ztunnel refuses is logged,
// and the others go on.
func (p *peer) snapshotAdds(ctx context.Context, onlyMissing bool) error {
	pods, err := p.cfg.Snapshot(ctx)
	if err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	defer func() {
		for _, w := range pods {
			w.NS.Close()
		}
	}()
	for _, w := range pods {
		if onlyMissing && (w.NS == nil || p.has[w.UID] == w.NS.ID()) {
			continue
		}
		if w.NS == nil {
			err = p.roundTrip(ctx, encodeKeep(w.UID), nil)
		} else {
			err = p.add(ctx, w)
		}
		if err != nil {
			p.notTaken(w, err)
		}
		if err := p.patient(ctx, err); err != nil {
			return err
		}
	}
	return nil
}

func (p *peer) notTaken(w Workload, err error) {
	p.log.Error("pod of the snapshot not taken by ztunnel", "pod", w.Info.String(), "uid", w.UID, "error", err)
	if p.cfg.Refused != nil {
		p.cfg.Refused(w.UID, err)
	}
}

// patient waits for an overdue answer, so that a slow ztunnel still gets its
// whole snapshot, and returns what the session cannot survive.
func (p *peer) patient(ctx context.Context, err error) error {
	if err := p.fatal(err); err != nil {
		return err
	}
	for p.owes != nil {
		if err := p.next(ctx); err != nil {
			return err
		}
	}
	return nil
}
