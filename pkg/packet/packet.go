// Package packet carries small messages and file descriptors over unix sockets of
// kind SOCK_SEQPACKET, as the node agent's two sockets do (pkg/zds, pkg/handover).
//
//	Write(c, bytes, fds) ──▶ one packet: all of it or an error ──▶ Read(c, buf) bytes, fds
//
// Descriptors that are given stay the caller's; those that come are the caller's,
// too, and close-on-exec. A packet that the kernel had to cut never gets through in
// part. All functions are safe for concurrent use.
package packet

import (
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// ErrMalformed is a packet that cannot be understood: the two ends no longer agree,
// and the connection is to be dropped.
var ErrMalformed = errors.New("malformed packet")

// Write sends one packet of at most limit bytes.
func Write(c *net.UnixConn, p []byte, limit int, fds ...int) error {
	if len(p) > limit {
		return fmt.Errorf("packet of %d bytes, the limit is %d", len(p), limit)
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	_, _, err := c.WriteMsgUnix(p, oob, nil)
	return err
}

// Read receives one packet into buf, which has a byte more than a packet may have,
// and at most so many descriptors. A longer one, or one with more, is ErrMalformed;
// what came with it is closed.
func Read(c *net.UnixConn, buf []byte, most int) (n int, fds []int, err error) {
	oob := make([]byte, unix.CmsgSpace(4*most))
	n, oobn, flags, _, err := c.ReadMsgUnix(buf, oob)
	if err != nil {
		return 0, nil, err
	}
	fds, err = descriptors(oob[:oobn])
	switch {
	case err != nil:
	case flags&unix.MSG_CTRUNC != 0:
		err = fmt.Errorf("%w: more than %d file descriptors", ErrMalformed, most)
	case flags&unix.MSG_TRUNC != 0 || n == len(buf):
		err = fmt.Errorf("%w: longer than %d bytes", ErrMalformed, len(buf)-1)
	}
	if err != nil {
		Close(fds...)
		return 0, nil, err
	}
	return n, fds, nil
}

// descriptors returns what came with a packet. Go's recvmsg asks for close-on-exec.
func descriptors(oob []byte) (fds []int, err error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("%w: control message: %w", ErrMalformed, err)
	}
	for _, m := range msgs {
		got, err := unix.ParseUnixRights(&m)
		if err != nil {
			Close(fds...)
			return nil, fmt.Errorf("%w: control message: %w", ErrMalformed, err)
		}
		fds = append(fds, got...)
	}
	return fds, nil
}

// Close closes descriptors.
func Close(fds ...int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
