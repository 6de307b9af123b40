package laptop

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/cli/laptop/pod"
)

// Root is where the state of all meshes of this machine is, one folder each.
const Root = "/run/culvert"

// Dir is the state folder of one mesh.
type Dir string

var validName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)

// DirOf returns the state folder of the mesh of that name.
func DirOf(name string) (Dir, error) {
	if !validName.MatchString(name) {
		return "", fmt.Errorf("--name %q: want lower-case letters, digits and dashes, at most 32", name)
	}
	return Dir(filepath.Join(Root, name)), nil
}

func (d Dir) path(elem ...string) string {
	return filepath.Join(append([]string{string(d)}, elem...)...)
}

// Places in the state folder.
func (d Dir) Socket() string                { return d.path("control.sock") }
func (d Dir) Namespaces() string            { return d.path("ns") }
func (d Dir) PodNamespaces() string         { return d.path("netns") }
func (d Dir) Objects() string               { return d.path("objects") }
func (d Dir) Patches() string               { return d.path("patches") }
func (d Dir) ClusterPatches() string        { return d.path("patches", "cluster") }
func (d Dir) NodePatches(n string) string   { return d.path("patches", n) }
func (d Dir) Node(n string) string          { return d.path("nodes", n) }
func (d Dir) AgentSocket(n string) string   { return d.path("nodes", n, "agent.sock") }
func (d Dir) ZDSSocket(n string) string     { return d.path("nodes", n, "ztunnel.sock") }
func (d Dir) NodeToken(n string) string     { return d.path("nodes", n, "token") }
func (d Dir) Logs() string                  { return d.path("logs") }
func (d Dir) Log(component string) string   { return d.path("logs", component+".log") }
func (d Dir) CA() string                    { return d.path("ca") }
func (d Dir) RootCert() string              { return d.path("ca", "root-cert.pem") }
func (d Dir) TokenKeys() string             { return d.path("keys") }
func (d Dir) Pod(uid string) string         { return d.path("pods", uid) }
func (d Dir) Bin() string                   { return d.path("bin") }
func (d Dir) PodLog(ns, name string) string { return d.Log("pod_" + ns + "_" + name) }

// lockPath lies beside the folder: the folder itself is removed under the lock.
func (d Dir) lockPath() string { return string(d) + ".lock" }

// owner is what a lock's file says about who holds it.
type owner struct {
	PID   int       `json:"pid"`
	Since time.Time `json:"since"`
}

// lock is held by the process that runs a mesh, for as long as it lives.
type lock struct{ f *os.File }

// acquire takes the lock of d. It fails at once, naming the holder, when a mesh
// of that name runs.
func (d Dir) acquire() (*lock, error) {
	if err := os.MkdirAll(Root, 0o755); err != nil {
		return nil, err
	}
	for {
		f, err := os.OpenFile(d.lockPath(), os.O_RDWR|os.O_CREATE, 0o644)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			defer f.Close()
			return nil, d.taken(f)
		}
		if stale(f, d.lockPath()) { // removed by its last holder meanwhile
			f.Close()
			continue
		}
		raw, _ := json.Marshal(owner{os.Getpid(), time.Now()})
		if err := errors.Join(f.Truncate(0), write(f, raw)); err != nil {
			f.Close()
			return nil, err
		}
		return &lock{f}, nil
	}
}

func write(f *os.File, raw []byte) error {
	_, err := f.WriteAt(raw, 0)
	return err
}

func stale(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return true
	}
	b, err := os.Stat(path)
	return err != nil || !os.SameFile(a, b)
}

// ErrRunning says that a mesh of that name runs already.
var ErrRunning = errors.New("is running already")

func (d Dir) taken(f *os.File) error {
	var o owner
	_ = json.NewDecoder(f).Decode(&o)
	name := filepath.Base(string(d))
	return WithHint(fmt.Errorf("mesh %q %w (process %d)", name, ErrRunning, o.PID),
		"stop it with: culvert down --name %s, or give this one another --name", name)
}

// UpLog is where a detached mesh tells its events. It lies beside the folder, as
// the lock does.
func (d Dir) UpLog() string { return string(d) + ".log" }

// release gives the lock back and removes what lies beside the folder.
func (l *lock) release(d Dir) error {
	if err := os.Remove(d.UpLog()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(err, os.Remove(d.lockPath()), l.f.Close())
	}
	return errors.Join(os.Remove(d.lockPath()), l.f.Close())
}

// Free returns an error when a mesh of that name runs.
func (d Dir) Free() error {
	f, err := os.Open(d.lockPath())
	if err != nil {
		return nil
	}
	defer f.Close()
	if unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) != nil {
		return d.taken(f)
	}
	return nil
}

// Running reports whether a process holds the mesh's lock.
func (d Dir) Running() bool {
	return d.Free() != nil
}

// Names returns the names of the meshes that run on this machine.
func Names() []string {
	entries, err := os.ReadDir(Root)
	if err != nil {
		return nil
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() && Dir(filepath.Join(Root, e.Name())).Running() {
			names = append(names, e.Name())
		}
	}
	return names
}

// create makes the folders of an empty state.
func (d Dir) create(nodes []string) error {
	dirs := []string{d.Namespaces(), d.PodNamespaces(), d.Objects(), d.ClusterPatches(), d.Logs(), d.CA(), d.TokenKeys(), d.Bin(), d.path("pods")}
	for _, n := range nodes {
		dirs = append(dirs, d.Node(n), d.NodePatches(n))
	}
	for _, p := range dirs {
		if err := os.MkdirAll(p, 0o755); err != nil {
			return err
		}
	}
	return os.Chmod(d.TokenKeys(), 0o700)
}

// Clean removes everything that a mesh made and left: processes that are inside
// its namespaces, mounts, files. The caller holds the lock.
func (d Dir) Clean() error {
	if _, err := os.Stat(string(d)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	killed, err := d.killInside()
	mounts, merr := pod.MountsBelow(string(d))
	errs := []error{err, merr}
	for _, m := range mounts {
		if err := unix.Unmount(m, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", m, err))
		}
	}
	for _, p := range killed {
		awaitExit(p)
	}
	return errors.Join(append(errs, os.RemoveAll(string(d)))...)
}

// killInside kills the processes in the mesh's network namespaces: nothing else
// has any business there.
func (d Dir) killInside() (killed []int, err error) {
	inodes := map[uint64]bool{}
	for _, dir := range []string{d.Namespaces(), d.PodNamespaces()} {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			var st unix.Stat_t
			if unix.Stat(filepath.Join(dir, e.Name()), &st) == nil && isNamespace(filepath.Join(dir, e.Name())) {
				inodes[st.Ino] = true
			}
		}
	}
	if len(inodes) == 0 {
		return nil, nil
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		var st unix.Stat_t
		if unix.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &st) == nil && inodes[st.Ino] {
			if syscall.Kill(pid, syscall.SIGKILL) == nil {
				killed = append(killed, pid)
			}
		}
	}
	return killed, nil
}

// isNamespace tells a bound namespace from the plain file that is left of one.
func isNamespace(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// awaitExit waits, for a while, until a killed process is gone.
func awaitExit(pid int) {
	for range 200 {
		state, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(state), ") Z ") {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// Remove removes what a mesh that no longer runs left behind.
func (d Dir) Remove() error {
	held, err := d.acquire()
	if err != nil {
		return err
	}
	err = errors.Join(d.Clean(), held.release(d))
	_ = os.Remove(Root) // when this was the last mesh
	return err
}
