package packet_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/pkg/packet"
)

// pair connects through a listening socket.
func pair(t *testing.T) (here, there *net.UnixConn) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "deep", "s")
	l, err := packet.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if here, err = net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"}); err != nil {
		t.Fatal(err)
	}
	if there, err = l.AcceptUnix(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { here.Close(); there.Close() })
	return here, there
}

func TestPackets(t *testing.T) {
	t.Parallel()
	const limit, most = 8, 2
	here, there := pair(t)
	buf := make([]byte, limit+1)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	fd := int(null.Fd())
	for _, c := range []struct {
		name string
		text string
		fds  []int
		bad  bool
	}{
		{"nothing with it", "12345678", nil, false},
		{"two descriptors", "1", []int{fd, fd}, false},
		{"too many descriptors", "1", []int{fd, fd, fd, fd}, true},
	} {
		if err := packet.Write(here, []byte(c.text), limit, c.fds...); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		n, fds, err := packet.Read(there, buf, most)
		if c.bad {
			if !errors.Is(err, packet.ErrMalformed) || fds != nil {
				t.Errorf("%s: %v, %v", c.name, fds, err)
			}
			continue
		}
		if err != nil || string(buf[:n]) != c.text || len(fds) != len(c.fds) {
			t.Errorf("%s: %q with %v, %v", c.name, buf[:n], fds, err)
		}
		for _, fd := range fds {
			if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
				t.Errorf("%s: descriptor %d has flags %d, %v", c.name, fd, flags, err)
			}
		}
		packet.Close(fds...)
	}
	if err := packet.Write(here, make([]byte, limit+1), limit); err == nil {
		t.Error("a packet above the limit is sent")
	}
	if _, err := here.Write(make([]byte, limit+1)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := packet.Read(there, buf, most); !errors.Is(err, packet.ErrMalformed) {
		t.Errorf("a packet above the limit comes: %v", err)
	}
}

// TestListen: a listener takes over the path, and the one before leaves it alone.
func TestListen(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	first, err := packet.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	second, err := packet.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	first.Close()
	fi, err := os.Lstat(path)
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the file of the second: %v, %v", fi, err)
	}
	second.Close()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file is left: %v", err)
	}
}
