package proxy

import (
	"context"
	"errors"
	stdhttp "net/http"
	"time"

	"github.com/culvert-mesh/culvert/pkg/reason"
	"github.com/culvert-mesh/culvert/waypoint/cluster"
	"github.com/culvert-mesh/culvert/waypoint/config"
	"github.com/culvert-mesh/culvert/waypoint/http"
	"github.com/culvert-mesh/culvert/waypoint/http/h1"
	"github.com/culvert-mesh/culvert/waypoint/stream"
	"github.com/culvert-mesh/culvert/waypoint/upstream"
)

// maxAttempts bounds how many endpoints are tried for one request.
const maxAttempts = 3

// smallBody is up to how many bytes a body that has arrived is sent along with
// its head, before the answer is waited for.
const smallBody = 16 << 10

// forward gets an answer from an endpoint and passes it on.
//
//	connect      pick an endpoint, take a connection; nothing was sent yet, so a
//	             failure may be tried elsewhere
//	send         head and body; a long body by a goroutine of its own
//	await        1xx are passed on; the final head ends the wait
//	deliver      the body streams to the client, or both sides switch protocol
//
// and all of it again when the route asks for it (retry.go).
func (s *session) forward() {
	if err := s.keepBody(); err != nil {
		s.uploaded.bodyErr = err
		s.failed(err)
		return
	}
	s.mirror()
	if s.req.Body == nil || s.kept != nil {
		s.watch.arm()
	}
	again := false
	for attempt := 1; ; attempt++ {
		s.beginTry()
		err := s.connect(again)
		if err == nil {
			err = s.exchangeOnce()
		}
		switch {
		case s.retriable(attempt, err):
			again = s.endpoint != nil
		case s.tryAgain(err):
			again = false
		case err == nil:
			s.deliver()
			return
		default:
			s.failed(err)
			return
		}
		s.release(false)
		s.rewind()
	}
}

// retriable reports whether the request can be sent again although a connection
// failed: it was a used one that the endpoint closed meanwhile, no byte of an
// answer came, and sending the request twice does no harm (RFC 9110 §9.2.2).
func (s *session) retriable(attempt int, err error) bool {
	var stale *staleError
	return errors.As(err, &stale) && attempt < maxAttempts && s.upload == nil && s.req.Body == nil &&
		idempotent(s.req.Method) && s.ctx.Err() == nil
}

func idempotent(method string) bool {
	switch method {
	case "GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE":
		return true
	}
	return false
}

// staleError is a failure of a connection that had been used before, without a
// byte of an answer.
type staleError struct{ error }

func (e *staleError) Unwrap() error { return e.error }

// connect picks an endpoint and takes a connection to it. With again it opens a
// new connection to the same endpoint.
func (s *session) connect(again bool) error {
	ctx, cancel := s.ctx, context.CancelFunc(func() {})
	if !s.limit.IsZero() {
		ctx, cancel = context.WithDeadline(s.ctx, s.limit)
	}
	defer cancel()
	var space [maxAttempts]*cluster.Endpoint
	avoid := append(space[:0], s.avoid...)
	for tried := 1; ; tried++ {
		if !again {
			if err := s.pick(avoid); err != nil {
				return err
			}
		}
		up, err := s.p.upstream(ctx, s.req.Version, s.endpoint, s.cluster, again)
		if err == nil {
			return s.use(up)
		}
		if ctx.Err() != nil && s.ctx.Err() == nil {
			return reason.New(reason.RequestTimeout, "connect", s.endpoint.String(), err)
		}
		if avoid = append(avoid, s.endpoint); tried == maxAttempts || !worthAnother(err) || s.ctx.Err() != nil {
			return err
		}
		s.endpoint.End()
		s.endpoint, again = nil, false
	}
}

// upstream takes a connection that speaks the version in which the client asks: a
// server that is addressed in HTTP/2 without TLS must be known to speak it.
func (p *Proxy) upstream(ctx context.Context, v http.Version, ep *cluster.Endpoint, cl *config.Cluster, fresh bool) (*upstream.Conn, error) {
	if v == http.HTTP2 {
		return p.cfg.Upstream.GetHTTP2(ctx, ep, cl.ConnectTimeout, fresh)
	}
	return p.cfg.Upstream.Get(ctx, ep, cl.ConnectTimeout, fresh)
}

func (s *session) pick(avoid []*cluster.Endpoint) (err error) {
	if s.endpoint != nil {
		s.endpoint.End()
		s.endpoint = nil
	}
	var ep *cluster.Endpoint
	if s.cluster != nil && !s.dest.IsWorkload() {
		ep, err = s.p.cfg.Clusters.Pick(s.cluster, avoid...)
	} else {
		ep, s.cluster, err = s.p.endpointOf(s.dest, s.snap, s.conn.Destination, avoid)
	}
	if err == nil {
		s.endpoint = ep
		ep.Begin()
	}
	return err
}

// use makes a connection the exchange's own.
func (s *session) use(up *upstream.Conn) error {
	s.up = up
	s.upNow.Store(up)
	if err := s.ctx.Err(); err != nil { // abort may have looked before the Store
		return err
	}
	if !s.limit.IsZero() {
		_ = up.SetReadDeadline(s.limit)
		_ = up.SetWriteDeadline(s.limit)
	}
	return nil
}

// exchangeOnce sends the request and waits for the final response's head.
func (s *session) exchangeOnce() error {
	s.upstreamBegan = time.Now()
	answered := s.up.HTTP.Received()
	err := s.send()
	if err == nil {
		err = s.await()
	}
	s.upstreamTook = time.Since(s.upstreamBegan)
	if err == nil || isTimeout(err) {
		return err
	}
	var malformed *h1.Error
	if errors.As(err, &malformed) {
		return err
	}
	err = reason.New(reason.UpstreamReset, "read response", s.endpoint.String(), err)
	if !s.up.Fresh && s.up.HTTP.Received() == answered {
		return &staleError{err}
	}
	return err
}

func (s *session) bodyDone() bool {
	b := s.req.Body
	return b == nil || b.Length() >= 0 && b.Length() <= smallBody && int64(b.Buffered()) == b.Length()
}

// send sends the request, or starts to.
func (s *session) send() error {
	if s.bodyDone() {
		bodyErr, writeErr := s.up.HTTP.WriteRequest(&s.req)
		if bodyErr == nil && writeErr == nil {
			s.watch.arm() // not before: until now the body was in the buffer that the watch reads into
		}
		return errors.Join(bodyErr, writeErr)
	}
	s.upload = make(chan sent, 1)
	go s.sendBody(s.up, s.upload)
	return nil
}

// sendBody sends head and body while the answer is waited for. When the body
// fails nothing will be answered, so the endpoint's connection is given up.
func (s *session) sendBody(up *upstream.Conn, done chan<- sent) {
	bodyErr, writeErr := up.HTTP.WriteRequest(&s.req)
	if bodyErr != nil {
		up.Reset()
	} else if writeErr == nil {
		s.watch.arm()
	}
	done <- sent{bodyErr, writeErr}
}

// await reads heads until the final one and passes informational ones on.
func (s *session) await() error {
	for {
		if err := s.up.HTTP.ReadResponse(&s.req, &s.resp); err != nil {
			return err
		}
		if s.resp.Status >= 200 || s.resp.Status == stdhttp.StatusSwitchingProtocols {
			return nil
		}
		if err := s.srv.WriteInformational(&s.req, &s.resp); err != nil {
			s.cancel()
			return err
		}
	}
}

// failed answers for an endpoint that gave no answer.
func (s *session) failed(err error) {
	s.joinUpload(0)
	s.resp.Reset()
	var bad *h1.Error
	switch {
	case errors.As(s.uploaded.bodyErr, &bad): // the client's chunks make no sense
		s.flags, s.err = "DPE", reason.New(bad.Reason(), "read request body", s.conn.Source.String(), bad)
		s.resp.Close = true
		s.reply(bad.Status, bad.Text)
		return
	case s.ctx.Err() != nil || s.uploaded.bodyErr != nil:
		s.flags, s.err, s.dead = "DC", reason.New(reason.DownstreamClosed, "await response", s.conn.Source.String(), err), true
		s.cancel()
		return
	}
	a := answerTo(err)
	s.flags, s.err = a.flags, err
	s.reply(a.status, a.body)
}

// deliver passes the answer on.
func (s *session) deliver() {
	if s.weighted != nil && s.weighted.ResponseMods != nil {
		s.weighted.ResponseMods.Apply(&s.resp.Header)
	}
	if s.route != nil {
		applyResponse(s.route, &s.resp)
	}
	if s.resp.Status == stdhttp.StatusSwitchingProtocols {
		s.upgrade()
		return
	}
	s.respond()
}

func applyResponse(r *config.Route, resp *http.Response) {
	for i := range r.ResponseMods {
		r.ResponseMods[i].Apply(&resp.Header)
	}
}

// finish ends what the exchange has begun and gives its connection back.
func (s *session) finish() {
	wait := uploadWait
	if s.req.Version == http.HTTP2 {
		wait = 0 // the connection is usable in any case, and the client waits for the end
	}
	s.joinUpload(wait)
	s.watch.stop()
	ok := !s.dead && s.uploaded == sent{} && s.up != nil && s.up.HTTP.Reusable()
	s.release(ok)
	if s.endpoint != nil {
		s.endpoint.End()
	}
}

// uploadWait is how long an answered request's sender may take to notice that it
// has sent everything: an endpoint that has read the last byte can answer before
// the goroutine that wrote it runs again.
const uploadWait = 50 * time.Millisecond

// joinUpload waits for the goroutine that sends the body. One that is still at it
// after wait is interrupted: the answer is complete, nobody wants the rest. The
// endpoint's connection cannot be used again then, however far the sender got.
func (s *session) joinUpload(wait time.Duration) {
	if s.upload == nil {
		return
	}
	if !s.uploadEnds(wait) {
		_ = s.down.SetReadDeadline(stream.Past)
		s.up.Reset()
		s.uploaded = <-s.upload
		if isTimeout(s.uploaded.bodyErr) || s.uploaded == (sent{}) {
			s.uploaded = sent{nil, errInterrupted}
		}
		_ = s.down.SetReadDeadline(time.Time{})
	}
	s.upload = nil
}

// uploadEnds reports whether the body's sender has ended, or does within wait.
func (s *session) uploadEnds(wait time.Duration) bool {
	select {
	case s.uploaded = <-s.upload:
		return true
	default:
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case s.uploaded = <-s.upload:
		return true
	case <-timer.C:
		return false
	}
}

var errInterrupted = errors.New("answered before the request's end")

// release gives the connection back to the pool, or closes it.
func (s *session) release(reusable bool) {
	up := s.up
	if up == nil {
		return
	}
	s.up = nil
	s.upNow.Store(nil)
	if !reusable {
		up.Close()
		return
	}
	if !s.limit.IsZero() {
		_ = up.SetReadDeadline(time.Time{})
		_ = up.SetWriteDeadline(time.Time{})
	}
	s.p.cfg.Upstream.Put(up)
}
