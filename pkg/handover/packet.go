package handover

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"

	"github.com/culvert-mesh/culvert/pkg/packet"
)

// op is what a message asks for or says.
type op string

const (
	opPut        op = "put"        // keep these sockets of a pod
	opTake       op = "take"       // give me the sockets of a pod
	opDrop       op = "drop"       // forget the sockets of a pod
	opSave       op = "save"       // keep this section
	opLoad       op = "load"       // give me a section
	opReport     op = "report"     // this is how I am
	opAnswer     op = "answer"     // to a request
	opSuperseded op = "superseded" // a newer client serves, or does no more
)

// message is one packet. Which fields matter depends on Op.
type message struct {
	Op        op       `json:"op"`
	Version   int      `json:"v"`
	ID        uint64   `json:"id,omitempty"` // of the request, also in its answer
	Pod       string   `json:"pod,omitempty"`
	Namespace string   `json:"ns,omitempty"`
	Names     []string `json:"names,omitempty"` // of the sockets, in the order of the descriptors
	Section   string   `json:"section,omitempty"`
	Error     string   `json:"error,omitempty"`
	On        bool     `json:"on,omitempty"`
	Status    *Status  `json:"status,omitempty"`
}

// maxText bounds every name in a message, in bytes.
const maxText = 512

// decode parses a message and checks that as many descriptors came as it names.
func decode(p []byte, fds int) (message, error) {
	var m message
	d := json.NewDecoder(bytes.NewReader(p))
	if err := d.Decode(&m); err != nil {
		return message{}, fmt.Errorf("%w: %w", packet.ErrMalformed, err)
	}
	if d.More() {
		return message{}, fmt.Errorf("%w: more than one object", packet.ErrMalformed)
	}
	if m.Version != version {
		return message{}, fmt.Errorf("%w: version %d, want %d", packet.ErrMalformed, m.Version, version)
	}
	want := len(m.Names)
	if m.Op == opSave || m.Op == opAnswer && m.Section != "" {
		want = 1
	}
	if fds != want {
		return message{}, fmt.Errorf("%w: %s with %d file descriptors, want %d", packet.ErrMalformed, m.Op, fds, want)
	}
	return m, m.check()
}

// check looks at the names: they become keys of what is kept.
func (m message) check() error {
	if len(m.Names) > maxSockets {
		return fmt.Errorf("%w: %d sockets, at most %d", packet.ErrMalformed, len(m.Names), maxSockets)
	}
	for _, s := range append([]string{m.Pod, m.Namespace, m.Section}, m.Names...) {
		if len(s) > maxText {
			return fmt.Errorf("%w: a name of %d bytes", packet.ErrMalformed, len(s))
		}
	}
	seen := map[string]bool{}
	for _, n := range m.Names {
		if n == "" || seen[n] {
			return fmt.Errorf("%w: socket name %q is empty or twice", packet.ErrMalformed, n)
		}
		seen[n] = true
	}
	switch m.Op {
	case opPut, opTake, opDrop:
		if m.Pod == "" {
			return fmt.Errorf("%w: %s without a pod", packet.ErrMalformed, m.Op)
		}
	case opSave, opLoad:
		if m.Section == "" {
			return fmt.Errorf("%w: %s without a section", packet.ErrMalformed, m.Op)
		}
	case opReport:
		if m.Status == nil {
			return fmt.Errorf("%w: report without a status", packet.ErrMalformed)
		}
	case opAnswer, opSuperseded:
	default:
		return fmt.Errorf("%w: unknown operation %q", packet.ErrMalformed, m.Op)
	}
	return nil
}

// write sends one message with its descriptors, which stay the caller's.
func write(c *net.UnixConn, m message, fds []int) error {
	m.Version = version
	p, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if err := packet.Write(c, p, maxPacket, fds...); err != nil {
		return fmt.Errorf("%s: %w", m.Op, err)
	}
	return nil
}

// read receives one message and its descriptors, which the caller owns.
func read(c *net.UnixConn) (message, []int, error) {
	p := make([]byte, maxPacket+1)
	n, fds, err := packet.Read(c, p, maxSockets+1)
	if err != nil {
		return message{}, nil, err
	}
	m, err := decode(p[:n], len(fds))
	if err != nil {
		packet.Close(fds...)
		return message{}, nil, err
	}
	return m, fds, nil
}
