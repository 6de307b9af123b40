package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// listener is a listening socket that can stop without losing a connection: the
// clients of those in its queue believe themselves connected, so they are
// accepted before the socket closes.
type listener struct {
	*net.TCPListener
	stopping atomic.Bool
	ended    chan struct{} // closed when Accept has returned its last connection
	once     sync.Once
	short    shortage                                 // owned by the goroutine that accepts
	refused  func(remote netip.AddrPort, cause error) // a connection for which there was no descriptor; may be nil
}

func newListener(l *net.TCPListener) *listener {
	spare.hold()
	return &listener{TCPListener: l, ended: make(chan struct{})}
}

func (l *listener) end() { l.once.Do(func() { close(l.ended) }) }

// stop makes Accept return what is queued and then close the socket.
func (l *listener) stop() {
	l.stopping.Store(true)
	l.SetDeadline(time.Unix(1, 0)) // wakes Accept
}

// wait returns when Accept will return no more connections, or ctx ends.
func (l *listener) wait(ctx context.Context) {
	select {
	case <-l.ended:
	case <-ctx.Done():
	}
}

// Accept implements net.Listener. After stop it ends with net.ErrClosed.
func (l *listener) Accept() (net.Conn, error) {
	c, err := l.AcceptTCP()
	if err != nil {
		return nil, err
	}
	return c, nil
}

// AcceptTCP is Accept with the type that it always has.
func (l *listener) AcceptTCP() (*net.TCPConn, error) {
	for {
		if l.stopping.Load() {
			return l.acceptQueued()
		}
		c, err := l.TCPListener.AcceptTCP()
		switch {
		case err == nil:
			l.short = shortage{}
			return c, nil
		case l.short.over(err, time.Now()):
			l.refuseQueued(err)
			time.Sleep(acceptPause)
		case l.stopping.Load() && errors.Is(err, os.ErrDeadlineExceeded):
		case transient(err):
			time.Sleep(acceptPause)
		default:
			l.end()
			return nil, err
		}
	}
}

// acceptPause keeps a process that is out of descriptors from spinning.
const acceptPause = 5 * time.Millisecond

// transient reports whether accepting may work again: resources are short, or the
// error is that of one connection, whose client has gone or which the network has
// lost (accept(2): Linux returns those where other systems keep them).
func transient(err error) bool {
	for _, e := range []unix.Errno{
		unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM,
		unix.ECONNABORTED, unix.EPERM, unix.EPROTO, unix.ENOPROTOOPT, unix.EOPNOTSUPP,
		unix.ENETDOWN, unix.ENETUNREACH, unix.EHOSTDOWN, unix.EHOSTUNREACH, unix.ENONET, unix.ETIMEDOUT,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// acceptQueued takes one connection off the queue without waiting for any. Short
// resources are waited for: what is in the queue would be lost.
func (l *listener) acceptQueued() (*net.TCPConn, error) {
	for {
		c, err := l.takeQueued()
		if err == nil {
			return c, nil
		}
		if !transient(err) {
			l.Close()
			l.end()
			return nil, net.ErrClosed
		}
		time.Sleep(acceptPause)
	}
}

func (l *listener) takeQueued() (*net.TCPConn, error) {
	fd, err := l.accept4()
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "tcp")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

func (l *listener) accept4() (int, error) {
	raw, err := l.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd, aerr := -1, error(nil)
	err = raw.Control(func(s uintptr) {
		for {
			fd, _, aerr = unix.Accept4(int(s), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
			if aerr != unix.EINTR && aerr != unix.ECONNABORTED {
				return
			}
		}
	})
	if err != nil {
		return -1, err
	}
	return fd, aerr
}
