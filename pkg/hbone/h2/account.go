package h2

// What may be buffered is bounded by hbone.Budget, which covers everything that a
// peer has been promised room for or has filled:
//
//	connection window   all of it, from the connection's beginning: bytes on their
//	                    way, and bytes queued whose credit is held back
//	stream window       what it has grown by: so much of the stream's queue is paid for
//	queue of a stream   what exceeds that, when it is queued
//	block to be sent    all of it, but for the smallest blocks
//
// Queued bytes are credited to the connection at once while the budget lasts, so
// that a stalled stream holds up nobody; when it does not they wait, within the
// connection's window.

// charge accounts for n bytes that were put into the queue. s.rmu is held.
func (s *stream) charge(n int) {
	if more := s.due(s.q.n-s.held) - s.charged; more > 0 {
		if !s.c.budget.Take(int64(more)) {
			s.held += n
			return
		}
		s.charged += more
	}
	s.c.creditConn(n)
}

// due is what a queue of n credited bytes costs the budget beyond the window.
func (s *stream) due(n int) int { return max(0, n-s.window.grown) }

// uncharge accounts for n bytes that left the queue. s.rmu is held.
func (s *stream) uncharge(n int) {
	if back := min(n, s.held); back > 0 {
		s.held -= back
		s.c.creditConn(back)
		s.c.wake()
	}
	if less := s.charged - s.due(s.q.n-s.held); less > 0 {
		s.charged -= less
		s.c.budget.Give(int64(less))
	}
}

// releaseWindow gives back what the window has grown by, when the peer's direction
// has ended; what is still queued then has to be paid for by itself. s.rmu is held.
func (s *stream) releaseWindow() {
	s.window.release(s.c.budget)
	if more := s.due(s.q.n-s.held) - s.charged; more > 0 {
		s.charged += more
		s.c.budget.Force(int64(more))
	}
}

// consumed accounts for n bytes that left the queue toward their reader.
func (s *stream) consumed(n int) {
	s.uncharge(n)
	s.creditStream(n)
	s.c.wake()
}

// credit accounts for n bytes that were delivered as they arrived.
func (s *stream) credit(n int) {
	s.c.creditConn(n)
	s.creditStream(n)
}

// creditStream lets the peer send as much more on s. s.rmu is held.
func (s *stream) creditStream(n int) {
	if s.eof {
		return
	}
	more := s.window.consume(n, s.c.shortest(), s.c.budget)
	if more == 0 {
		return
	}
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if !s.removed && !s.recvDone {
		s.c.ctl = appendWindowUpdate(s.c.ctl, s.id, more)
		s.c.measure()
	}
}

// reserveWindow pays for the connection's window, which the peer has been told.
func (c *conn) reserveWindow() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.window.reserve(c.budget)
	}
}
