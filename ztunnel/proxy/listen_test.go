package proxy

import (
	"errors"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/pkg/hbone/hbonetest"
)

// TestListenerStop holds that connections which the kernel has accepted before
// the listener stops are served all the same.
func TestListenerStop(t *testing.T) {
	t.Parallel()
	tcp, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	l := newListener(tcp)
	defer l.Close()
	const queued = 20
	for range queued {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	l.stop()
	for i := range queued {
		c, err := l.Accept()
		if err != nil {
			t.Fatalf("connection %d of %d: %v", i, queued, err)
		}
		c.Close()
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after the last: %v", err)
	}
	l.wait(t.Context())
	if _, err := net.Dial("tcp", l.Addr().String()); err == nil {
		t.Error("the port is still open")
	}
}

// TestListenerStopWakes holds that stop ends an Accept that waits.
func TestListenerStopWakes(t *testing.T) {
	t.Parallel()
	tcp, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	l := newListener(tcp)
	done := make(chan error, 1)
	go func() {
		_, err := l.Accept()
		done <- err
	}()
	l.stop()
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept: %v", err)
	}
}

// TestListenerStopShortOfDescriptors holds that what is queued at the stop is not
// lost when there are no descriptors for a while. It does not run beside others:
// the limit is the process's.
func TestListenerStopShortOfDescriptors(t *testing.T) {
	tcp, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	l := newListener(tcp)
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()

	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	none := unix.Rlimit{Cur: 1, Max: limit.Max}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	l.stop()
	accepted := make(chan error, 1)
	go func() {
		c, err := l.AcceptTCP()
		if err == nil {
			c.Close()
		}
		accepted <- err
	}()
	hbonetest.Until(t, "the listener to wait", func() bool {
		return hbonetest.Goroutines("proxy.(*listener).acceptQueued") == 1 || len(accepted) == 1
	})
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if err := <-accepted; err != nil {
		t.Errorf("the queued connection: %v", err)
	}
}

func TestTransient(t *testing.T) {
	t.Parallel()
	for _, e := range []unix.Errno{unix.ECONNABORTED, unix.EMFILE, unix.EPERM, unix.EHOSTUNREACH, unix.ENETDOWN} {
		if !transient(&net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", e)}) {
			t.Errorf("%v ends the listener", e)
		}
	}
	for _, e := range []error{net.ErrClosed, unix.EBADF, unix.EAGAIN} {
		if transient(e) {
			t.Errorf("%v is waited for", e)
		}
	}
}
