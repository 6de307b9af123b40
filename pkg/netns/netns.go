// Package netns makes sockets, namespaces and processes in Linux network
// namespaces.
//
// A socket belongs for life to the namespace in which socket(2) made it, so only
// that one call has to happen there. A goroutine is locked to its thread, the
// thread enters the namespace, makes the socket and comes back; options, bind,
// connect, accept and all I/O then happen anywhere, on the ordinary poller.
//
//	goroutine            locked thread                   poller
//	  Dial ──────────▶ setns(pod) socket(2) setns(home)
//	   ◀── descriptor ─────┘
//	  options, bind, connect(2) ──────────────────────▶ waits for the handshake
//	   ◀── *net.TCPConn ──────────────────────────────────┘
//
// Nothing else of the Go world runs inside a namespace: a net.Dialer, a resolver
// or a gRPC dial starts goroutines on other threads, which are somewhere else.
//
// A nil *NS means the namespace of the process. Everything is safe for
// concurrent use; closing an NS while another goroutine makes a socket in it
// makes that call fail and nothing else.
package netns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"

	"github.com/vishvananda/netlink"
	vns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// threadNS names the namespace of the calling thread.
const threadNS = "/proc/thread-self/ns/net"

// ID identifies a namespace: two descriptors are of the same namespace exactly
// when their IDs are equal. The zero ID is none.
type ID struct {
	Dev, Ino uint64
}

// String returns the form that ip-netns(8) and lsns(8) show: "net:[4026532008]".
func (id ID) String() string { return fmt.Sprintf("net:[%d]", id.Ino) }

// NS is an open network namespace. It keeps the namespace alive until Close.
type NS struct {
	file *os.File
	id   ID
}

// Open opens the namespace at path, such as /var/run/netns/x or /proc/7/ns/net.
func Open(path string) (*NS, error) {
	handle, err := vns.GetFromPath(path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace %s: %w", path, err)
	}
	return fromFD(int(handle), path)
}

// FromFD makes an NS of a descriptor and takes ownership of it, also when it
// returns an error. A descriptor of anything but a network namespace is an error.
func FromFD(fd int) (*NS, error) { return fromFD(fd, fmt.Sprintf("fd %d", fd)) }

// Current opens the namespace of the calling thread: inside Do the one entered,
// anywhere else the one of the process.
func Current() (*NS, error) { return Open(threadNS) }

func fromFD(fd int, name string) (*NS, error) {
	unix.CloseOnExec(fd)
	typ, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	if err != nil || typ != unix.CLONE_NEWNET {
		unix.Close(fd)
		return nil, fmt.Errorf("open network namespace %s: not a network namespace", name)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open network namespace %s: fstat: %w", name, err)
	}
	return &NS{file: os.NewFile(uintptr(fd), name), id: ID{uint64(st.Dev), st.Ino}}, nil
}

// New creates a namespace with its loopback interface up and binds it at path,
// making the file and its directory. The namespace lives until Delete(path) and
// until the last descriptor, socket and process in it is gone.
func New(path string) (*NS, error) {
	ns, err := NewUnnamed()
	if err != nil {
		return nil, err
	}
	if err := ns.bindAt(path); err != nil {
		ns.Close()
		return nil, fmt.Errorf("create network namespace %s: %w", path, err)
	}
	return ns, nil
}

// NewUnnamed creates a namespace with its loopback interface up that lives only
// as long as something holds it: the NS, a socket or a process.
func NewUnnamed() (*NS, error) {
	var ns *NS
	err := onThread(func() error {
		handle, err := vns.New()
		if err != nil {
			return fmt.Errorf("create network namespace: %w", err)
		}
		if ns, err = fromFD(int(handle), "new"); err != nil {
			return err
		}
		if err = loopbackUp(); err != nil {
			ns.Close()
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return ns, nil
}

// Delete unbinds the namespace at path and removes the file. A path that does
// not exist, or is an ordinary file that an interrupted New left, is no error.
func Delete(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete network namespace %s: unmount: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("delete network namespace %s: %w", path, err)
	}
	return nil
}

func (n *NS) bindAt(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	f.Close()
	if err := unix.Mount(n.Path(), path, "none", unix.MS_BIND, ""); err != nil {
		os.Remove(path)
		return fmt.Errorf("bind mount: %w", err)
	}
	return nil
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("create network namespace: find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("create network namespace: lo up: %w", err)
	}
	return nil
}

// ID returns the namespace's identity; that of a nil NS is zero.
func (n *NS) ID() ID {
	if n == nil {
		return ID{}
	}
	return n.id
}

// FD returns the descriptor, which stays owned by n; it is -1 after Close.
func (n *NS) FD() int { return int(n.file.Fd()) }

// Path returns a path at which this process can open the namespace while n is open.
func (n *NS) Path() string { return fmt.Sprintf("/proc/self/fd/%d", n.FD()) }

// Dup returns a second, independent NS of the same namespace.
func (n *NS) Dup() (*NS, error) {
	var dup int
	err := n.control(func(fd int) (err error) {
		dup, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("duplicate network namespace %s: %w", n.id, err)
	}
	return &NS{file: os.NewFile(uintptr(dup), n.file.Name()), id: n.id}, nil
}

// Close gives the descriptor back. Sockets made in the namespace live on.
func (n *NS) Close() error {
	if n == nil {
		return nil
	}
	if err := n.file.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// Do runs fn on a thread that is inside the namespace and returns its error. fn
// is for socket(2), netlink requests and sysctls: it must not start goroutines
// that count on being inside, nor call methods of this package. A thread that
// cannot come back ends with its goroutine, so that no other code ever runs in
// the wrong namespace.
func (n *NS) Do(fn func() error) error {
	if n == nil {
		return fn()
	}
	return onThread(func() error {
		if err := n.enter(); err != nil {
			return err
		}
		return fn()
	})
}

// Start starts cmd, as (*exec.Cmd).Start does, inside the namespace.
func (n *NS) Start(cmd *exec.Cmd) error {
	if n == nil {
		return cmd.Start()
	}
	return n.Do(cmd.Start)
}

func (n *NS) enter() error {
	err := n.control(func(fd int) error { return vns.Set(vns.NsHandle(fd)) })
	if err != nil {
		return fmt.Errorf("enter network namespace %s: %w", n.id, err)
	}
	return nil
}

// control runs fn with the descriptor held open.
func (n *NS) control(fn func(fd int) error) error {
	raw, err := n.file.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	if err := raw.Control(func(fd uintptr) { ferr = fn(int(fd)) }); err != nil {
		return err
	}
	return ferr
}

// home is the namespace in which the process was started.
var home = sync.OnceValues(func() (vns.NsHandle, error) { return vns.GetFromPath("/proc/self/ns/net") })

// onThread runs fn on a locked thread that may leave its namespace, and brings
// the thread home. The goroutine is a fresh one: handing it fn costs less than a
// microsecond, and when the thread cannot come home it can end together with it.
func onThread(fn func() error) error {
	back, err := home()
	if err != nil {
		return fmt.Errorf("open own network namespace: %w", err)
	}
	done := make(chan error, 1)
	go runOnThread(fn, back, done)
	return <-done
}

func runOnThread(fn func() error, back vns.NsHandle, done chan<- error) {
	runtime.LockOSThread()
	err := errors.New("goroutine ended inside a network namespace")
	defer func() {
		if vns.Set(back) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	err = fn()
}
