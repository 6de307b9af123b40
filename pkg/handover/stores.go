package handover

import (
	"errors"
	"net"
	"os"
	"syscall"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/packet"
)

// Stores are those that a ztunnel deposits in: the node agent's, and that of the
// supervisor which started it. Everything goes to each; what is taken comes from
// the first that has it. Failures are logged: without a store the ztunnel serves
// all the same.
type Stores []*Client

// Put deposits a pod's sockets by name.
func (s Stores) Put(k Key, socks map[string]syscall.Conn) {
	if len(s) == 0 || len(socks) == 0 {
		return
	}
	names, fds := make([]string, 0, len(socks)), make([]int, 0, len(socks))
	defer func() { packet.Close(fds...) }()
	for name, sock := range socks {
		fd, err := duplicateOf(sock)
		if err != nil {
			continue // closed meanwhile
		}
		names, fds = append(names, name), append(fds, fd)
	}
	for _, c := range s {
		c.note("sockets not deposited", k.Pod, c.Put(k, names, fds))
	}
}

func duplicateOf(sock syscall.Conn) (fd int, err error) {
	raw, err := sock.SyscallConn()
	if err != nil {
		return -1, err
	}
	var derr error
	err = raw.Control(func(s uintptr) { fd, derr = duplicate(int(s)) })
	if err == nil && derr == nil {
		return fd, nil
	}
	return -1, errors.Join(err, derr)
}

// Take returns what is deposited for a pod, by name. The files are the caller's.
func (s Stores) Take(k Key) map[string]*os.File {
	for _, c := range s {
		files, err := c.Take(k)
		c.note("sockets not taken over", k.Pod, err)
		if len(files) > 0 {
			return files
		}
	}
	return nil
}

// Release has a pod's sockets forgotten where no successor would find them.
func (s Stores) Release(k Key) {
	for _, c := range s {
		if c.cfg.Private {
			c.note("sockets not released", k.Pod, c.Drop(k))
		}
	}
}

// Save deposits a sealed section, and reports whether some store has it.
func (s Stores) Save(section string, f *os.File) (saved bool) {
	for _, c := range s {
		err := c.Save(section, f)
		c.note("state not deposited", "", err)
		saved = saved || err == nil
	}
	return saved
}

// Load returns a section from the first store that has it, nil when none has.
func (s Stores) Load(section string) []byte {
	for _, c := range s {
		p, err := c.Load(section)
		c.note("state not taken over", "", err)
		if p != nil {
			return p
		}
	}
	return nil
}

// Report says to every store how this ztunnel is.
func (s Stores) Report(now Status) {
	for _, c := range s {
		c.note("status not reported", "", c.Report(now))
	}
}

// Attached reports whether some store is there.
func (s Stores) Attached() bool {
	for _, c := range s {
		if c.Attached() {
			return true
		}
	}
	return false
}

// Shared reports whether a store is there from which a successor takes.
func (s Stores) Shared() bool {
	for _, c := range s {
		if !c.cfg.Private && c.Attached() {
			return true
		}
	}
	return false
}

// Lasting reports whether a store from which a successor takes is there, or was: an
// agent that restarts, perhaps in the same rollout as ourselves, comes back.
func (s Stores) Lasting() bool {
	for _, c := range s {
		if !c.cfg.Private && c.reached.Load() {
			return true
		}
	}
	return false
}

// Superseded reports whether a successor serves.
func (s Stores) Superseded() bool {
	for _, c := range s {
		if c.Superseded() {
			return true
		}
	}
	return false
}

func (c *Client) note(what string, pod mesh.PodUID, err error) {
	if err != nil && !errors.Is(err, ErrDetached) && !errors.Is(err, net.ErrClosed) {
		c.cfg.Log.Warn(what, "pod", pod, "error", err)
	}
}
