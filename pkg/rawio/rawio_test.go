package rawio_test

import (
	"bytes"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/pkg/rawio"
)

func pair(t *testing.T) (a, b int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fds[0]); unix.Close(fds[1]) })
	return fds[0], fds[1]
}

func TestReadWrite(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	buf := make([]byte, 4*rawio.Small)
	for _, read := range []func(int, []byte) (int, error){rawio.Read, rawio.ReadSmall} {
		for _, room := range []int{0, 1, rawio.Small, len(buf)} {
			if err := rawio.Ready(b); err != unix.EAGAIN {
				t.Errorf("ready without bytes: %v", err)
			}
			if n, err := read(b, buf[:room]); room > 0 && err != unix.EAGAIN {
				t.Errorf("read without bytes: %d, %v", n, err)
			}
			sent := bytes.Repeat([]byte("x"), max(1, min(room, 2*rawio.Small)))
			if n, err := rawio.Write(a, sent); n != len(sent) || err != nil {
				t.Fatalf("wrote %d of %d: %v", n, len(sent), err)
			}
			if err := rawio.Ready(b); err != nil {
				t.Errorf("not ready: %v", err)
			}
			for left := len(sent); left > 0; {
				n, err := read(b, buf[:max(1, room)])
				if err != nil || n < 1 || !bytes.Equal(buf[:n], sent[:n]) {
					t.Fatalf("read %d of %d: %v", n, left, err)
				}
				left -= n
			}
		}
	}
}

func TestShutdown(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	if err := rawio.Shutdown(a); err != nil {
		t.Fatal(err)
	}
	if err := rawio.Ready(b); err != nil {
		t.Errorf("the end is not ready: %v", err)
	}
	if n, err := rawio.Read(b, make([]byte, 1)); n != 0 || err != nil {
		t.Errorf("read of the end: %d, %v", n, err)
	}
	for _, err := range []error{rawio.Shutdown(-1), rawio.Ready(-1), rawio.Set(-1, 0, 0, 0)} {
		if err != unix.EBADF {
			t.Errorf("no socket: %v", err)
		}
	}
	if _, err := rawio.Write(b, []byte("x")); err != nil {
		t.Errorf("the other direction: %v", err)
	}
}

func TestConnect(t *testing.T) {
	t.Parallel()
	for family, at := range map[int]string{unix.AF_INET: "127.0.0.1:0", unix.AF_INET6: "[::1]:0"} {
		l, err := net.Listen("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP) // waits
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if err := rawio.Set(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
			t.Fatal(err)
		}
		if on, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY); on != 1 || err != nil {
			t.Errorf("TCP_NODELAY is %d, %v", on, err)
		}
		to := l.Addr().(*net.TCPAddr).AddrPort()
		if err := rawio.Connect(fd, to, 0); err != nil {
			t.Fatalf("connect %s: %v", to, err)
		}
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		if err := rawio.Connect(fd, netip.AddrPortFrom(to.Addr(), 1), 0); err != unix.EISCONN {
			t.Errorf("again: %v", err)
		}
	}
}
