package proxy

import (
	"errors"
	"io"
	"slices"
	"time"

	"github.com/culvert-mesh/culvert/waypoint/config"
	"github.com/culvert-mesh/culvert/waypoint/http"
	"github.com/culvert-mesh/culvert/waypoint/http/h1"
)

// Retries that a route asks for. They come on top of what is done unasked: another
// endpoint when none could be connected, and a second try when a connection had
// been closed meanwhile.
//
//	keepBody   a short body is read whole, so that it can be sent again
//	beginTry   the time that one try may take
//	tryAgain   is another one due, and has its pause passed?

// retry returns what the route says about retries, nil for none.
func (s *session) retry() *config.Retry {
	if s.route == nil || s.route.Forward == nil {
		return nil
	}
	return s.route.Forward.Retry
}

// keepBody reads a short body into memory when it may be needed more than once. A
// longer one, or one whose length is not known, is sent once.
func (s *session) keepBody() error {
	b := s.req.Body
	if b == nil || b.Length() < 0 || b.Length() > smallBody || s.req.ExpectContinue || s.retry() == nil && !s.mirrored() {
		return nil
	}
	kept, err := io.ReadAll(reader{b})
	if err != nil {
		return err
	}
	s.kept = kept
	s.rewind()
	return nil
}

// reader makes a body an io.Reader.
type reader struct{ http.Body }

// rewind makes a body that is kept ready to be sent again.
func (s *session) rewind() {
	if s.kept != nil {
		s.req.Body = &fixed{rest: s.kept, length: int64(len(s.kept))}
	}
}

// beginTry starts the clock of one try.
func (s *session) beginTry() {
	s.limit = s.deadline
	r := s.retry()
	if r == nil || r.TryTimeout == 0 {
		return
	}
	if until := time.Now().Add(r.TryTimeout); s.limit.IsZero() || until.Before(s.limit) {
		s.limit = until
	}
}

// tryAgain reports whether the route wants the request sent again, after an error
// or after an answer with one of its codes, and if so waits for the pause.
func (s *session) tryAgain(err error) bool {
	r := s.retry()
	replayable := s.upload == nil && (s.req.Body == nil || s.kept != nil)
	if r == nil || s.retries >= r.Attempts || !replayable || s.ctx.Err() != nil {
		return false
	}
	var malformed *h1.Error
	if err == nil && !slices.Contains(r.Codes, s.resp.Status) || errors.As(err, &malformed) {
		return false
	}
	pause := r.Backoff << min(s.retries, 4)
	if !s.deadline.IsZero() && time.Until(s.deadline) <= pause {
		return false
	}
	s.retries++
	if s.endpoint != nil {
		s.avoid = append(s.avoid, s.endpoint)
	}
	return s.rest(pause)
}

// rest waits; false means that the client has left.
func (s *session) rest(d time.Duration) bool {
	if d == 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-s.ctx.Done():
		return false
	}
}
