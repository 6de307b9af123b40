package proxy

import (
	"context"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/pkg/certs"
	"github.com/culvert-mesh/culvert/pkg/handover"
	"github.com/culvert-mesh/culvert/pkg/hbone/hbonetest"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netns"
	"github.com/culvert-mesh/culvert/pkg/netns/netnstest"
	"github.com/culvert-mesh/culvert/pkg/workloads"
)

// attached returns a store and a connection to it.
func attached(t *testing.T, private bool) (*handover.Store, handover.Stores) {
	t.Helper()
	store := handover.NewStore(handover.StoreConfig{})
	path := filepath.Join(t.TempDir(), "store")
	c := handover.NewClient(handover.ClientConfig{Path: path, Private: private})
	ctx, cancel := context.WithCancel(context.Background())
	stored, called := make(chan error, 1), make(chan error, 1)
	go func() { stored <- store.Run(ctx, path) }()
	hbonetest.Until(t, "the store", func() bool { return c.Attach() == nil })
	go func() { called <- c.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-called; <-stored })
	return store, handover.Stores{c}
}

// inode identifies the socket under a listener.
func inode(t *testing.T, l *listener) (ino uint64) {
	t.Helper()
	raw, err := l.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		var st unix.Stat_t
		if unix.Fstat(int(fd), &st) == nil {
			ino = st.Ino
		}
	})
	return ino
}

// TestSocketsAreTakenOver: the next proxy of a pod listens on the very sockets of
// the one before, unless they are not what it wants.
func TestSocketsAreTakenOver(t *testing.T) {
	t.Parallel()
	ns := netnstest.New(t)
	store, stores := attached(t, false)
	proxyOf := func(change func(*Settings)) *Pod {
		t.Helper()
		node := newNode(t, workloads.New(), certs.Fixed{})
		node.Store = stores
		node.Settings.ReusePort = true
		change(&node.Settings)
		dup, err := ns.Dup()
		if err != nil {
			t.Fatal(err)
		}
		p := node.NewPod("uid", dbInfo, dup)
		if err := p.Listen(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Close)
		return p
	}
	same := func(*Settings) {}
	first := proxyOf(same)
	if _, n := store.Held(); n != 3 {
		t.Errorf("%d sockets deposited", n)
	}
	waiting, err := ns.Dial(t.Context(), netip.MustParseAddrPort("127.0.0.1:15001"), netns.DialOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer waiting.Close()
	sockets := [3]uint64{inode(t, first.outbound), inode(t, first.plaintext), inode(t, first.inbound)}
	first.Close() // as if it had died

	second := proxyOf(func(s *Settings) { s.OrigSrc = true })
	if got := [3]uint64{inode(t, second.outbound), inode(t, second.plaintext), inode(t, second.inbound)}; got != sockets {
		t.Errorf("listens on sockets %v, its predecessor on %v", got, sockets)
	}
	if !second.origSrc {
		t.Error("a socket that was taken over cannot be made transparent")
	}
	c, err := second.outbound.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	c.Close()

	other := proxyOf(func(s *Settings) { s.Mark = mesh.MarkProxy + 1 })
	if inode(t, other.outbound) == sockets[0] {
		t.Error("a socket with another mark was taken over")
	}
	if ipv4 := proxyOf(func(s *Settings) { s.Mark, s.IPv6 = mesh.MarkProxy+1, false }); inode(t, ipv4.outbound) == inode(t, other.outbound) {
		t.Error("a socket of both families was taken over for one")
	}
	if _, n := store.Held(); n != 3 {
		t.Errorf("%d sockets held in the end: what was not fit has not been replaced", n)
	}
}

// TestPrivateSocketsGoFirst: sockets in a store that no successor takes from are
// out of it before the pod stops accepting; they would swallow connections.
func TestPrivateSocketsGoFirst(t *testing.T) {
	t.Parallel()
	for private, want := range map[bool]int{true: 0, false: 3} {
		store, stores := attached(t, private)
		node := newNode(t, workloads.New(), certs.Fixed{})
		node.Store = stores
		dup, err := netnstest.New(t).Dup()
		if err != nil {
			t.Fatal(err)
		}
		p := node.NewPod("uid", dbInfo, dup)
		start(t, p)
		p.Drain(t.Context())
		if _, n := store.Held(); n != want {
			t.Errorf("private %v: %d sockets held after the drain, want %d", private, n, want)
		}
	}
}

// TestUnfit: what is no socket of ours is not listened on.
func TestUnfit(t *testing.T) {
	t.Parallel()
	p := &Pod{node: &Node{Settings: Settings{IPv6: true}}}
	at := netip.MustParseAddrPort("[::]:15001")
	udp, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv6loopback})
	if err != nil {
		t.Skip("no IPv6")
	}
	defer udp.Close()
	bound := udp.LocalAddr().(*net.UDPAddr).AddrPort()
	f, err := udp.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, c := range []struct {
		f    *os.File
		at   netip.AddrPort
		typ  int
		want string
	}{
		{f, at, unix.SOCK_STREAM, "bound to"},
		{f, bound, unix.SOCK_STREAM, "SO_TYPE"},
		{file, at, unix.SOCK_STREAM, ""},
	} {
		if err := p.fits(c.f, c.at, c.typ); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.want, err)
		}
	}
	if err := p.fits(f, bound, unix.SOCK_DGRAM); err != nil {
		t.Error(err)
	}
}
