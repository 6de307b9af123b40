package handover

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
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

var errMalformed = errors.New("malformed packet")

// maxText bounds every name in a message, in bytes.
const maxText = 512

// decode parses a message and checks that as many descriptors came as it names.
func decode(p []byte, fds int) (message, error) {
	var m message
	d := json.NewDecoder(bytes.NewReader(p))
	if err := d.Decode(&m); err != nil {
		return message{}, fmt.Errorf("%w: %w", errMalformed, err)
	}
	if d.More() {
		return message{}, fmt.Errorf("%w: more than one object", errMalformed)
	}
	if m.Version != version {
		return message{}, fmt.Errorf("%w: version %d, want %d", errMalformed, m.Version, version)
	}
	want := len(m.Names)
	if m.Op == opSave || m.Op == opAnswer && m.Section != "" {
		want = 1
	}
	if fds != want {
		return message{}, fmt.Errorf("%w: %s with %d file descriptors, want %d", errMalformed, m.Op, fds, want)
	}
	return m, m.check()
}

// check looks at the names: they become keys of what is kept.
func (m message) check() error {
	if len(m.Names) > maxSockets {
		return fmt.Errorf("%w: %d sockets, at most %d", errMalformed, len(m.Names), maxSockets)
	}
	for _, s := range append([]string{m.Pod, m.Namespace, m.Section}, m.Names...) {
		if len(s) > maxText {
			return fmt.Errorf("%w: a name of %d bytes", errMalformed, len(s))
		}
	}
	seen := map[string]bool{}
	for _, n := range m.Names {
		if n == "" || seen[n] {
			return fmt.Errorf("%w: socket name %q is empty or twice", errMalformed, n)
		}
		seen[n] = true
	}
	switch m.Op {
	case opPut, opTake, opDrop:
		if m.Pod == "" {
			return fmt.Errorf("%w: %s without a pod", errMalformed, m.Op)
		}
	case opSave, opLoad:
		if m.Section == "" {
			return fmt.Errorf("%w: %s without a section", errMalformed, m.Op)
		}
	case opReport:
		if m.Status == nil {
			return fmt.Errorf("%w: report without a status", errMalformed)
		}
	case opAnswer, opSuperseded:
	default:
		return fmt.Errorf("%w: unknown operation %q", errMalformed, m.Op)
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
	if len(p) > maxPacket {
		return fmt.Errorf("%s: packet of %d bytes, the limit is %d", m.Op, len(p), maxPacket)
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	_, _, err = c.WriteMsgUnix(p, oob, nil)
	return err
}

// read receives one message and its descriptors, which the caller owns.
func read(c *net.UnixConn) (message, []int, error) {
	p := make([]byte, maxPacket+1)
	oob := make([]byte, unix.CmsgSpace(4*(maxSockets+1)))
	n, oobn, flags, _, err := c.ReadMsgUnix(p, oob)
	if err != nil {
		return message{}, nil, err
	}
	fds, err := descriptors(oob[:oobn])
	if err == nil && (flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 || n > maxPacket) {
		err = fmt.Errorf("%w: too long", errMalformed)
	}
	var m message
	if err == nil {
		m, err = decode(p[:n], len(fds))
	}
	if err != nil {
		closeAll(fds)
		return message{}, nil, err
	}
	return m, fds, nil
}

// descriptors returns what came with a packet. They are close-on-exec: Go's
// recvmsg asks for it.
func descriptors(oob []byte) (fds []int, err error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("%w: control message: %w", errMalformed, err)
	}
	for _, m := range msgs {
		got, err := unix.ParseUnixRights(&m)
		if err != nil {
			closeAll(fds)
			return nil, fmt.Errorf("%w: control message: %w", errMalformed, err)
		}
		fds = append(fds, got...)
	}
	return fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
