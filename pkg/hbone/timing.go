package hbone

import "time"

// Timing says where the time of an Open went, for whoever asks with
// Request.Timing. What was not reached is 0; of a tunnel that was there already
// only Connect counts. An opener fills it in before Open returns.
type Timing struct {
	Dial    time.Duration // TCP connect, or waiting for one that was under way
	TLS     time.Duration // certificate and handshake
	Connect time.Duration // from the CONNECT to its answer
	Reused  bool          // the tunnel was there already
}
