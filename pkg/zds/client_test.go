package zds

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netns/netnstest"
	wire "github.com/culvert-mesh/culvert/pkg/wire/zds"
)

func dialRaw(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func send(t *testing.T, c *net.UnixConn, m proto.Message, fds ...int) {
	t.Helper()
	p, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	sendBytes(t, c, p, fds...)
}

func sendBytes(t *testing.T, c *net.UnixConn, p []byte, fds ...int) {
	t.Helper()
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	if _, _, err := c.WriteMsgUnix(p, oob, nil); err != nil {
		t.Fatal(err)
	}
}

// rawAgent plays the agent by hand.
type rawAgent struct {
	t *testing.T
	l *net.UnixListener
}

func newRawAgent(t *testing.T) (*rawAgent, string) {
	t.Helper()
	netnstest.RequireRoot(t)
	path := filepath.Join(t.TempDir(), "zds.sock")
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return &rawAgent{t, l}, path
}

// accept takes a connection and its hello.
func (a *rawAgent) accept() *net.UnixConn {
	a.t.Helper()
	c, err := a.l.AcceptUnix()
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { c.Close() })
	buf := make([]byte, 100)
	n, err := c.Read(buf)
	if err != nil || string(buf[:n]) != "\x08\x01" {
		a.t.Fatalf("hello %x, %v", buf[:n], err)
	}
	return c
}

func (a *rawAgent) ack(c *net.UnixConn) string {
	a.t.Helper()
	c.SetReadDeadline(time.Now().Add(2 * time.Minute))
	buf := make([]byte, 2000)
	n, err := c.Read(buf)
	if err != nil {
		a.t.Fatal(err)
	}
	text, err := decodeAck(buf[:n])
	if err != nil {
		a.t.Fatal(err)
	}
	return text
}

// Packets that cannot be understood are answered with an error; the connection
// is dropped, made again, and nothing is lost.
func TestClientSurvivesMalformedPackets(t *testing.T) {
	t.Parallel()
	a, path := newRawAgent(t)
	ns := netnstest.New(t)
	r := newRecorder()
	background(t, NewClient(path, r, ClientConfig{MaxBackoff: 10 * time.Millisecond}).Run)
	add := encodeAdd(Workload{UID: "u1", Info: mesh.PodInfo{Name: "p", Namespace: "n", ServiceAccount: "s"}})
	for _, c := range []struct {
		want string
		send func(c *net.UnixConn)
	}{
		{"add with 0 file descriptors", func(c *net.UnixConn) { send(t, c, add) }},
		{"add with 2 file descriptors", func(c *net.UnixConn) { send(t, c, add, ns.FD(), ns.FD()) }},
		{"more than 8 file descriptors", func(c *net.UnixConn) { send(t, c, add, slices.Repeat([]int{ns.FD()}, 12)...) }},
		{"longer than 1024 bytes", func(c *net.UnixConn) { sendBytes(t, c, make([]byte, 1025), ns.FD()) }},
		{"malformed", func(c *net.UnixConn) { sendBytes(t, c, []byte("\xff\xff garbage")) }},
		{"no payload", func(c *net.UnixConn) { sendBytes(t, c, []byte("\x22\x00"), ns.FD()) }},
	} {
		conn := a.accept()
		r.want(t, "begin")
		c.send(conn)
		if got := a.ack(conn); !strings.Contains(got, c.want) {
			t.Errorf("answer %q, want %q", got, c.want)
		}
		r.want(t, "disconnected")
	}
	conn := a.accept()
	send(t, conn, add, ns.FD())
	if got := a.ack(conn); got != "" {
		t.Errorf("answer %q", got)
	}
	r.want(t, "begin", "add u1 n/p")
}

// A descriptor that is no network namespace fails its pod and no other.
func TestWrongDescriptor(t *testing.T) {
	t.Parallel()
	a, path := newRawAgent(t)
	ns := netnstest.New(t)
	r := newRecorder()
	background(t, NewClient(path, r, ClientConfig{}).Run)
	conn := a.accept()
	add := encodeAdd(Workload{UID: "u1", Info: mesh.PodInfo{Name: "p"}})
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	send(t, conn, add, int(f.Fd()))
	if got := a.ack(conn); !strings.Contains(got, "not a network namespace") {
		t.Errorf("answer %q", got)
	}
	send(t, conn, add, ns.FD())
	if got := a.ack(conn); got != "" {
		t.Errorf("answer %q", got)
	}
}

// What breaks the protocol's logic ends the client with an error.
func TestClientViolations(t *testing.T) {
	t.Parallel()
	ns := netnstest.New(t)
	for _, c := range []struct {
		want string
		play func(a *rawAgent, c *net.UnixConn)
	}{
		{"second snapshot", func(a *rawAgent, c *net.UnixConn) {
			send(t, c, encodeSnapshotSent())
			a.ack(c)
			send(t, c, encodeSnapshotSent())
		}},
		{"keep after the snapshot", func(a *rawAgent, c *net.UnixConn) {
			send(t, c, encodeSnapshotSent())
			a.ack(c)
			send(t, c, encodeKeep("u1"))
		}},
		{"add without workload info", func(a *rawAgent, c *net.UnixConn) {
			send(t, c, &wire.WorkloadRequest{Payload: &wire.WorkloadRequest_Add{Add: &wire.AddWorkload{Uid: "u"}}}, ns.FD())
		}},
	} {
		a, path := newRawAgent(t)
		ended := make(chan error, 1)
		go func() { ended <- NewClient(path, newRecorder(), ClientConfig{}).Run(t.Context()) }()
		conn := a.accept()
		c.play(a, conn)
		if got := a.ack(conn); !strings.Contains(got, c.want) {
			t.Errorf("answer %q, want %q", got, c.want)
		}
		if err := <-ended; !errors.Is(err, ErrViolation) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("ended with %v, want %q", err, c.want)
		}
	}
}
