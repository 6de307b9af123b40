package h2

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"

	"github.com/culvert-mesh/culvert/pkg/reason"
)

// dialError gives a failed connect its reason.
func dialError(ctx context.Context, addr netip.AddrPort, err error) error {
	why := reason.ConnectFailed
	switch {
	case reason.Of(err) != reason.Internal:
		return err
	case errors.Is(err, syscall.ECONNREFUSED):
		why = reason.ConnectRefused
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		why = reason.HBONETimeout
	case ctx.Err() != nil:
		why = reason.Draining
	}
	return reason.New(why, "dial", addr.String(), err)
}

// remoteAddr returns a connection's remote address, zero if it has none.
func remoteAddr(c net.Conn) netip.AddrPort {
	if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		ap := a.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}
