package handover

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// patience is how long a test waits for what must come.
const patience = 2 * time.Minute

// serve runs a store until the test ends, or until stop.
func serve(t *testing.T, cfg StoreConfig) (s *Store, path string, stop func()) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "store")
	s, stop = serveAt(t, cfg, path)
	return s, path, stop
}

func serveAt(t *testing.T, cfg StoreConfig, path string) (*Store, func()) {
	t.Helper()
	s := NewStore(cfg)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, path) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	await(t, "the store listens", func() bool { _, err := os.Stat(path); return err == nil })
	return s, stop
}

// attach runs a client until the test ends, or until stop.
func attach(t *testing.T, cfg ClientConfig) (c *Client, stop func()) {
	t.Helper()
	c = NewClient(cfg)
	if err := c.Attach(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return c, stop
}

func await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited %s: %s", patience, what)
		}
	}
}

func listenTCP(t *testing.T) *net.TCPListener {
	t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func key(pod string) Key { return Key{mesh.PodUID(pod), "net:[1]"} }

// TestSocketsOutliveTheirMaker is what the package is for: connections that were
// made before the first ztunnel died, and while there is none, are accepted by the
// next one.
func TestSocketsOutliveTheirMaker(t *testing.T) {
	store, path, _ := serve(t, StoreConfig{})
	first, die := attach(t, ClientConfig{Path: path})
	l := listenTCP(t)
	Stores{first}.Put(key("a"), map[string]syscall.Conn{"tcp/15001": l})
	dial := func() net.Conn {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	queued := dial()
	die()
	l.Close()
	orphan := dial()

	second, _ := attach(t, ClientConfig{Path: path})
	files := Stores{second}.Take(key("a"))
	f := files["tcp/15001"]
	if f == nil {
		t.Fatalf("took %v", files)
	}
	defer f.Close()
	next, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	for _, c := range []net.Conn{queued, orphan} {
		got, err := next.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer got.Close()
		if got.RemoteAddr().String() != c.LocalAddr().String() {
			t.Errorf("accepted %s, want %s", got.RemoteAddr(), c.LocalAddr())
		}
	}

	if _, n := store.Held(); n != 1 {
		t.Errorf("%d sockets held", n)
	}
	if files := (Stores{second}).Take(Key{"a", "net:[2]"}); len(files) != 0 {
		t.Errorf("sockets of another namespace taken: %v", files)
	}
	if pods, n := store.Held(); pods != 0 || n != 0 {
		t.Errorf("the pod has a new namespace, and %d sockets of the old one are held", n)
	}
}

// TestDescriptorsComeBack: the store and the clients hold as many descriptors
// after the pods have gone as before they came.
func TestDescriptorsComeBack(t *testing.T) {
	_, path, _ := serve(t, StoreConfig{Known: func(u mesh.PodUID) bool { return u != "stranger" }})
	c, _ := attach(t, ClientConfig{Path: path})
	l, file := listenTCP(t), devNull(t)
	before := descriptorsOpen(t)
	for range 3 { // again and again, as after a reconnect
		for _, pod := range []string{"a", "b", "stranger"} {
			Stores{c}.Put(key(pod), map[string]syscall.Conn{"x": l, "y": l})
		}
	}
	if n := descriptorsOpen(t); n != before+4 {
		t.Errorf("%d descriptors for two pods with two sockets", n-before)
	}
	for name, f := range (Stores{c}).Take(key("a")) {
		if err := f.Close(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := c.Put(key("bad"), []string{"x"}, []int{int(file.Fd())}); err == nil {
		t.Error("a file was taken for a socket")
	}
	if err := c.Drop(Key{"a", "net:[2]"}); err != nil || descriptorsOpen(t) != before+4 {
		t.Errorf("sockets of another namespace dropped: %v", err)
	}
	for _, pod := range []string{"a", "b", "never"} {
		if err := c.Drop(key(pod)); err != nil {
			t.Error(err)
		}
	}
	if n := descriptorsOpen(t); n != before {
		t.Errorf("%d descriptors are left", n-before)
	}
}

func devNull(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func descriptorsOpen(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// TestSealed: what is deposited cannot be changed by anybody, and what could be
// changed is not taken.
func TestSealed(t *testing.T) {
	_, path, _ := serve(t, StoreConfig{})
	c, _ := attach(t, ClientConfig{Path: path})
	f, err := Seal("test", func(w io.Writer) error { _, err := io.WriteString(w, "secret"); return err })
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := c.Save("s", f); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("x"), 0); !errors.Is(err, unix.EPERM) {
		t.Errorf("write: %v", err)
	}
	for what, size := range map[string]int64{"shrink": 1, "grow": 100} {
		if err := f.Truncate(size); !errors.Is(err, unix.EPERM) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := unix.Mmap(int(f.Fd()), 0, 6, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); !errors.Is(err, unix.EPERM) {
		t.Errorf("map for writing: %v", err)
	}
	for range 2 { // a reader moves nobody's offset
		if got, err := c.Load("s"); err != nil || string(got) != "secret" {
			t.Errorf("loaded %q, %v", got, err)
		}
	}
	if got, err := c.Load("none"); err != nil || got != nil {
		t.Errorf("loaded %q, %v", got, err)
	}

	fd, err := unix.MemfdCreate("open", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	unsealed := os.NewFile(uintptr(fd), "open")
	defer unsealed.Close()
	for name, f := range map[string]*os.File{"unsealed": unsealed, "file": devNull(t)} {
		if err := c.Save("s", f); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestSuccession: a ztunnel learns when a newer one serves, and that it does no
// more; what it knows does not count meanwhile.
func TestSuccession(t *testing.T) {
	store, path, _ := serve(t, StoreConfig{})
	changes := make(chan bool, 8)
	old, _ := attach(t, ClientConfig{Path: path, Superseded: func(on bool) { changes <- on }})
	old.Report(Status{State: Serving, Open: 7})
	next, stop := attach(t, ClientConfig{Path: path})
	if old.Superseded() {
		t.Error("superseded by one that does not serve yet")
	}
	next.Report(Status{State: Serving})
	expect(t, changes, true)
	if next.Superseded() || !old.Superseded() {
		t.Errorf("superseded: old %v, next %v", old.Superseded(), next.Superseded())
	}
	f, err := Seal("s", func(io.Writer) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := old.Save("s", f); err == nil {
		t.Error("a superseded ztunnel's knowledge was kept")
	}
	if err := next.Save("s", f); err != nil {
		t.Error(err)
	}
	list := store.Clients()
	if len(list) != 2 || list[0].Open != 7 || !list[0].Superseded || list[1].Superseded || list[0].PID != os.Getpid() {
		t.Errorf("clients %+v", list)
	}
	stop()
	expect(t, changes, false)
}

// TestYoungerSockets: a ztunnel that started while there was no store has opened
// sockets of its own. An older one that finds the new store after it does not put its
// own in their place: nobody would accept what comes to them when it has left.
func TestYoungerSockets(t *testing.T) {
	_, path, _ := serve(t, StoreConfig{})
	old := NewClient(ClientConfig{Path: path})
	younger, stop := attach(t, ClientConfig{Path: path})
	theirs, ours := listenTCP(t), listenTCP(t)
	Stores{younger}.Put(key("a"), map[string]syscall.Conn{"x": ours})
	if err := old.Attach(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- old.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	held := func() string {
		files, err := old.Take(key("a"))
		if err != nil {
			t.Fatal(err)
		}
		defer files["x"].Close()
		l, err := net.FileListener(files["x"])
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return l.Addr().String()
	}
	Stores{old}.Put(key("a"), map[string]syscall.Conn{"x": theirs})
	if held() != ours.Addr().String() {
		t.Error("the older one's socket took the place of the younger one's")
	}
	stop()
	await(t, "the older one is alone, and deposits", func() bool {
		Stores{old}.Put(key("a"), map[string]syscall.Conn{"x": theirs})
		return held() == theirs.Addr().String()
	})
}

func expect(t *testing.T, changes <-chan bool, want bool) {
	t.Helper()
	select {
	case got := <-changes:
		if got != want {
			t.Fatalf("told superseded %v, want %v", got, want)
		}
	case <-time.After(patience):
		t.Fatalf("not told superseded %v", want)
	}
}

// TestAnotherStore: when the agent has been started again, its ztunnels deposit
// again what it lost.
func TestAnotherStore(t *testing.T) {
	_, path, stop := serve(t, StoreConfig{})
	l := listenTCP(t)
	var c *Client
	c = NewClient(ClientConfig{Path: path, Attached: func() {
		Stores{c}.Put(key("a"), map[string]syscall.Conn{"x": l})
	}})
	if (Stores{c}).Lasting() {
		t.Error("a store that nobody has reached yet is waited for")
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	await(t, "attached", c.Attached)
	c.Report(Status{State: Serving})
	stop()
	await(t, "detached", func() bool { return !c.Attached() })
	if all := (Stores{c}); all.Shared() || !all.Lasting() {
		t.Errorf("between two stores: shared %v, lasting %v", all.Shared(), all.Lasting())
	}
	if _, err := c.Take(key("a")); !errors.Is(err, ErrDetached) {
		t.Errorf("without a store: %v", err)
	}
	again, _ := serveAt(t, StoreConfig{}, path)
	await(t, "deposited again", func() bool { _, n := again.Held(); return n == 1 })
	if list := again.Clients(); len(list) != 1 || list[0].State != Serving {
		t.Errorf("the new store knows %+v", list)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestSuccessionOutlivesTheStore: while the agent restarts, the successor serves as
// before; and the store of the next agent knows who is whose, in whichever order
// they come back.
func TestSuccessionOutlivesTheStore(t *testing.T) {
	_, path, stop := serve(t, StoreConfig{})
	older := func() ClientConfig { return ClientConfig{Path: path} }
	old, leave := attach(t, older())
	next, _ := attach(t, older())
	old.Report(Status{State: Serving})
	next.Report(Status{State: Serving})
	await(t, "superseded", old.Superseded)
	stop()
	await(t, "detached", func() bool { return !old.Attached() && !next.Attached() })
	if !old.Superseded() || next.Superseded() {
		t.Errorf("without a store: superseded old %v, next %v", old.Superseded(), next.Superseded())
	}
	leave() // the old one comes back after its successor
	again, _ := serveAt(t, StoreConfig{}, path)
	await(t, "the successor is back", func() bool { return len(again.Clients()) == 1 })
	if err := old.Attach(); err != nil {
		t.Fatal(err)
	}
	defer old.close()
	await(t, "superseded again", old.Superseded)
	if list := again.Clients(); len(list) != 2 || !list[0].Superseded || list[1].Superseded || next.Superseded() {
		t.Errorf("clients %+v", list)
	}
}

// TestInherited: a supervisor gives its child one end of a pair.
func TestInherited(t *testing.T) {
	ours, theirs, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	s := NewStore(StoreConfig{})
	defer s.Clear()
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(t.Context(), ours) }()
	conn, err := Inherited(theirs)
	if err != nil {
		t.Fatal(err)
	}
	c, stop := attach(t, ClientConfig{Conn: conn, Private: true})
	l := listenTCP(t)
	Stores{c}.Put(key("a"), map[string]syscall.Conn{"x": l})
	if _, n := s.Held(); n != 1 {
		t.Errorf("%d sockets held", n)
	}
	Stores{c}.Release(key("a"))
	if _, n := s.Held(); n != 0 {
		t.Errorf("%d sockets held after the release", n)
	}
	stop()
	<-done
}

func TestTrusted(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		uid, own uint32
		want     bool
	}{{0, 1000, true}, {1000, 1000, true}, {1001, 1000, false}, {1000, 0, false}, {0, 0, true}} {
		if got := trusted(c.uid, c.own); got != c.want {
			t.Errorf("user %d for %d: %v", c.uid, c.own, got)
		}
	}
}

// TestMode: nobody else can connect in the first place.
func TestMode(t *testing.T) {
	_, path, _ := serve(t, StoreConfig{})
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
}

func sample(n int) []Record {
	var list []Record
	for i := range n {
		id := string(rune('a' + i%26))
		list = append(list, Record{"Kubernetes//Pod/ns/" + id, "v" + id, []byte(strings.Repeat(id, i*100))})
	}
	return list
}

func encode(t testing.TB, h Header, records []Record) []byte {
	t.Helper()
	var b strings.Builder
	if err := Encode(&b, h, slices.Values(records)); err != nil {
		t.Fatal(err)
	}
	return []byte(b.String())
}

func TestSection(t *testing.T) {
	t.Parallel()
	want := Header{Saved: time.Unix(0, 1e18), Contact: time.Unix(0, 9e17), Origin: OriginOf("n", "td")}
	records := sample(1000)
	p := encode(t, want, records)
	var got []Record
	h, err := Decode(p, func(r Record) error { got = append(got, r); return nil })
	if err != nil || !h.Saved.Equal(want.Saved) || !h.Contact.Equal(want.Contact) {
		t.Fatalf("%+v, %v", h, err)
	}
	if !slices.EqualFunc(got, records, func(a, b Record) bool {
		return a.Name == b.Name && a.Version == b.Version && string(a.Body) == string(b.Body)
	}) {
		t.Errorf("%d records came back of %d", len(got), len(records))
	}
	for _, at := range []int{0, 10, headerSize + 1, len(p) / 2, len(p) - 1} {
		bad := slices.Clone(p)
		bad[at] ^= 1
		if _, err := Decode(bad, func(Record) error { return nil }); !errors.Is(err, errDamaged) {
			t.Errorf("byte %d changed: %v", at, err)
		}
	}
	if _, err := Decode(p[:len(p)-9], func(Record) error { return nil }); !errors.Is(err, errDamaged) {
		t.Errorf("cut short: %v", err)
	}
	stop := errors.New("enough")
	if _, err := Decode(p, func(Record) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("stopped: %v", err)
	}
	if h, err := Decode(encode(t, Header{}, nil), nil); err != nil || !h.Contact.IsZero() || !h.Saved.IsZero() {
		t.Errorf("empty: %+v, %v", h, err)
	}
}

// A pod that leaves while its sockets arrive leaves none behind: they would keep its
// network namespace alive, and nobody would come to drop them.
func TestPodLeavesMeanwhile(t *testing.T) {
	t.Parallel()
	asked := 0
	store := NewStore(StoreConfig{Known: func(mesh.PodUID) bool { asked++; return asked == 1 }})
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := store.put(&peer{}, message{Op: opPut, Pod: "p", Namespace: "n", Names: []string{"s"}}, []int{fd}); err == nil {
		t.Error("taken")
	}
	if pods, sockets := store.Held(); pods != 0 || sockets != 0 {
		t.Errorf("%d sockets of %d pods are left", sockets, pods)
	}
}

// Who is neither root nor our own user gets nothing, should it come by a connection.
func TestStrangerIsRefused(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root can be somebody else")
	}
	made := make(chan [2]int, 1)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread ends with the goroutine
		keep := ^uintptr(0)
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, 65534, keep); errno != 0 {
			t.Error(errno)
		}
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Error(err)
		}
		made <- fds
	}()
	fds := <-made
	ours, err := Inherited(os.NewFile(uintptr(fds[0]), "ours"))
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := Inherited(os.NewFile(uintptr(fds[1]), "theirs"))
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	store := NewStore(StoreConfig{})
	store.Serve(t.Context(), ours) // returns at once
	if n := len(store.Clients()); n != 0 {
		t.Errorf("%d clients", n)
	}
	if _, err := theirs.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the stranger reads: %v", err)
	}
}

// A memfd that is larger than any section is not read.
func TestHugeSection(t *testing.T) {
	t.Parallel()
	fd, err := unix.MemfdCreate("huge", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, MaxSection+1); err != nil { // without memory: it is all hole
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		t.Fatal(err)
	}
	if _, err := checkSealed(fd); err == nil {
		t.Error("taken")
	}
}
