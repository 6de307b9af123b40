package stream

import (
	"net"

	"golang.org/x/sys/unix"
)

// readable reports whether something has arrived on c, its end included,
// without taking it.
func readable(c *net.TCPConn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return true
	}
	arrived := true
	err = raw.Control(func(fd uintptr) {
		var one [1]byte
		_, _, err := unix.Recvfrom(int(fd), one[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		arrived = err != unix.EAGAIN
	})
	return err != nil || arrived
}
