// Package h2 carries HBONE tunnels over HTTP/2: CONNECT streams (RFC 9113 §8.5)
// inside mutual TLS, and nothing else of HTTP/2.
//
//	               Pool ─ open ─▶ conn ══ TLS ══ conn ─ serve ─▶ Handler
//	                                │             │
//	socket ─▶ Pump ─▶ block ─▶ ready ring       reader ─▶ sink ─▶ socket
//	                   (send.go: writer)   (recv.go)      (sink.go: EAGAIN ─▶ queue ─▶ drain)
//
// A conn has one reader goroutine. Whoever has something to send writes it, and
// what others have queued meanwhile; only when more is left than its own does a
// writer goroutine take over. Control frames go first, then the streams that
// have data, in turn, a quantum each.
//
// The reader never waits for a destination: it tries one write that does not
// block, and what the socket does not take is queued on that stream, for a
// goroutine that lives as long as the queue. The peer may send a stream as much
// as its window, which is credited when bytes are delivered; the connection's
// window is credited when they arrive, so a destination that stalls holds up
// nobody else. Windows grow with the measured bandwidth-delay product out of
// hbone.Budget.
//
// Nothing that waits holds a buffer: blocks are borrowed while there are bytes
// in them.
//
// Pool and Server are safe for concurrent use; of a stream see hbone.Stream.
// Locks are taken in the order stream.rmu, conn.mu.
package h2
