package integration

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/pkg/netns"
)

// A ztunnel that runs out of something refuses new work with a reason, keeps what
// it has, and recovers by itself.

// crowded is a client and a server on two nodes, each behind a ztunnel process.
type crowded struct {
	client, server *pod
	near, far      *ztunnel
}

func newCrowded(t *testing.T, environ ...string) *crowded {
	f := newField(t)
	c := &crowded{client: f.pod("client", "one"), server: f.pod("server", "two")}
	c.server.listen(t, 8080, echo)
	f.program = filepath.Join(bin, "ztunnel")
	c.far = f.ztunnel("two", f.agent("two", c.server), nil)
	c.near = f.ztunnel("one", f.agent("one", c.client), nil, environ...)
	return c
}

// open makes a connection that has had its first answer.
func (c *crowded) open(t *testing.T) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := c.client.NS.Dial(ctx, netip.AddrPortFrom(c.server.IP4, 8080), netns.DialOptions{})
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { conn.Close() })
	if err := say(conn); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// say reads the echo's greeting if it is new, and exchanges a message.
func say(c *net.TCPConn) error {
	c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, "!\n"); err != nil {
		return err
	}
	one := make([]byte, 1)
	for {
		if _, err := io.ReadFull(c, one); err != nil {
			return err
		}
		if one[0] == '!' {
			_, err := io.ReadFull(c, one)
			return err
		}
	}
}

// limit sets how many descriptors the process may have.
func (z *ztunnel) limit(n int) {
	z.t.Helper()
	if err := unix.Prlimit(z.cmd.Process.Pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(n), Max: 20_000}, nil); err != nil {
		z.t.Fatal(err)
	}
}

// cpu returns what the process has used, in clock ticks of 10 ms (proc_pid_stat(5)).
func (z *ztunnel) cpu() (ticks int) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", z.cmd.Process.Pid))
	if err != nil {
		z.t.Fatal(err)
	}
	var user, system int
	after := raw[bytes.LastIndexByte(raw, ')')+1:]
	fmt.Sscanf(strings.Join(strings.Fields(string(after))[11:13], " "), "%d %d", &user, &system)
	return user + system
}

func TestOutOfDescriptors(t *testing.T) {
	for _, at := range []string{"the client's ztunnel", "the server's ztunnel"} {
		t.Run(at, func(t *testing.T) {
			c := newCrowded(t)
			old, err := c.open(t)
			if err != nil {
				t.Fatal(err)
			}
			short := c.near
			if at == "the server's ztunnel" {
				short = c.far
			}
			short.limit(short.descriptors() + 10)
			var held []*net.TCPConn
			refused := 0
			for range 60 {
				if conn, err := c.open(t); err == nil {
					held = append(held, conn)
				} else {
					refused++
				}
			}
			if len(held) == 0 || refused == 0 {
				t.Errorf("%d connections got through and %d were refused, want some of both", len(held), refused)
			}
			if err := say(old); err != nil {
				t.Errorf("the connection that was there: %v", err)
			}
			short.wantLog("resource limit reached")
			before := short.cpu()
			for range 20 { // while it is short: it does not spin
				_, _ = c.open(t)
			}
			t.Logf("%d of 60 got through; 20 more cost %d ms of CPU", len(held), 10*(short.cpu()-before))

			for _, conn := range held {
				conn.Close()
			}
			short.until("connections get through again", func() bool {
				conn, err := c.open(t)
				if err == nil {
					conn.Close()
				}
				return err == nil
			})
			short.limit(20_000)
		})
	}
}

// TestNobodyReadsTheLog holds that connections go on when the log's reader is stuck,
// and that what was lost is counted when it goes on.
func TestNobodyReadsTheLog(t *testing.T) {
	f := newField(t)
	c := &crowded{client: f.pod("client", "one"), server: f.pod("server", "one")}
	c.server.listen(t, 8080, echo)
	f.program = filepath.Join(bin, "ztunnel")
	agent := f.agent("one", c.client, c.server)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 4096); err != nil {
		t.Fatal(err)
	}
	f.output = w
	c.near = f.ztunnel("one", agent, nil)
	w.Close()
	for range 300 { // two access lines each: far more than the pipe holds
		conn, err := c.open(t)
		if err != nil {
			t.Fatalf("with a stuck log: %v", err)
		}
		conn.Close()
	}
	got := make(chan string, 1)
	go func() {
		text, _ := io.ReadAll(r)
		got <- string(text)
	}()
	c.near.until("the log goes on", func() bool {
		conn, err := c.open(t)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	if err := c.near.stop(); err != nil {
		t.Error(err)
	}
	if n := strings.Count(<-got, "connection complete"); n < 300 {
		t.Errorf("%d access lines came once the reader went on", n)
	}
}

// TestDiskFullUnderTheLog holds the same of a log on a disk that is full.
func TestDiskFullUnderTheLog(t *testing.T) {
	disk := t.TempDir()
	if err := unix.Mount("none", disk, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(disk, unix.MNT_DETACH)
	f := newField(t)
	c := &crowded{client: f.pod("client", "one"), server: f.pod("server", "one")}
	c.server.listen(t, 8080, echo)
	f.program = filepath.Join(bin, "ztunnel")
	log, err := os.OpenFile(filepath.Join(disk, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	f.output = log
	c.near = f.ztunnel("one", f.agent("one", c.client, c.server), nil)
	full := func() bool {
		var st unix.Statfs_t
		return unix.Statfs(disk, &st) == nil && st.Bavail == 0
	}
	c.near.until("the disk is full", func() bool {
		conn, err := c.open(t)
		if err != nil {
			t.Fatalf("on the way to a full disk: %v", err)
		}
		conn.Close()
		return full()
	})
	for range 50 {
		conn, err := c.open(t)
		if err != nil {
			t.Fatalf("with a full disk: %v", err)
		}
		conn.Close()
	}
	if err := log.Truncate(0); err != nil { // room again
		t.Fatal(err)
	}
	c.near.until("lines are written again", func() bool {
		conn, err := c.open(t)
		if err == nil {
			conn.Close()
		}
		st, serr := log.Stat()
		return serr == nil && st.Size() > 0
	})
}
