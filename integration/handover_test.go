package integration

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/culvert-mesh/culvert/pkg/handover"
)

// store holds sockets for the ztunnels of an agent, as ours does.
func (a *agent) store(t *testing.T) *handover.Store {
	s := handover.NewStore(handover.StoreConfig{})
	path := handover.PathOf(a.socket)
	background(t, func(ctx context.Context) error { return s.Run(ctx, path) })
	return s
}

// TestZtunnelSupervised: under an agent that only speaks ZDS, a ztunnel that is
// killed again and again refuses nobody. Its supervisor holds the sockets.
func TestZtunnelSupervised(t *testing.T) {
	t.Parallel()
	f := newField(t)
	client, server, a1, a2 := f.clientAndServer()
	f.program = supervisor(t)
	f.ztunnel("node-1", a1, nil)
	z := f.ztunnel("node-2", a2, nil)
	for range 4 {
		child := onlyChild(t, z.cmd.Process.Pid)
		if err := syscall.Kill(child, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		// Either proxy may be the one that the next one goes through: the tunnel
		// breaks, and the connection that notices it is tried again.
		if err := tryExchange(client, server.IP4, 7000); err != nil {
			t.Errorf("after a kill: %v", err)
		}
		z.until("another proxy", func() bool { return onlyChild(t, z.cmd.Process.Pid) != child })
	}
	// A successor under this agent has sockets of its own: ours must be gone with us.
	next := f.ztunnel("node-2", a2, z.ns)
	next.until("the successor to serve", func() bool { return next.logged("pod is in the mesh") })
	var good atomic.Int64
	load, stop := context.WithCancel(t.Context())
	defer stop()
	var done sync.WaitGroup
	done.Go(func() { pace(t, load, client, server.IP4, &good) })
	wantMore(next, &good)
	z.term()
	<-z.done
	wantMore(next, &good)
	stop()
	done.Wait()
}

// supervisor returns a program that supervises a ztunnel.
func supervisor(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "supervisor")
	script := fmt.Sprintf("#!/bin/sh\nexec %s/ztunnel supervise\n", bin)
	if err := os.WriteFile(path, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// onlyChild returns the child of a process, 0 while it has none.
func onlyChild(t *testing.T, pid int) int {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		text, _ := os.ReadFile(task)
		if child, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
			return child
		}
	}
	return 0
}

// TestZtunnelSocketsWait: with a store beside the agent's socket, connections that
// are made while there is no ztunnel at all are served by the next one, and a
// successor takes over the very same sockets from a ztunnel that drains.
func TestZtunnelSocketsWait(t *testing.T) {
	t.Parallel()
	f := newField(t)
	client, server, a1, a2 := f.clientAndServer()
	kept := a1.store(t)
	a2.store(t)
	z := f.ztunnel("node-1", a1, nil, "CONNECTION_TERMINATION_DEADLINE=1h")
	f.ztunnel("node-2", a2, nil)
	client.exchange(t, server.IP4, 7000)
	_, before := kept.Held()
	if before < 3 {
		t.Fatalf("%d sockets are held for a pod", before)
	}

	z.cmd.Process.Kill()
	<-z.done
	z.err = nil
	waiting := client.dial(t, server.IP4, 7000) // nobody accepts it, and it is not refused
	io.WriteString(waiting, "hello")
	next := f.ztunnel("node-1", a1, z.ns, "CONNECTION_TERMINATION_DEADLINE=1h")
	waiting.CloseWrite()
	if got, err := io.ReadAll(waiting); err != nil || !strings.HasSuffix(string(got), "hello") {
		t.Errorf("a connection made while there was no ztunnel: %q, %v", got, err)
	}
	if _, n := kept.Held(); n != before {
		t.Errorf("%d sockets are held after the restart, %d before", n, before)
	}

	open := client.dial(t, server.IP4, 7000)
	io.WriteString(open, "begin ")
	next.until("the connection to be open", func() bool {
		return strings.Contains(next.get("http://127.0.0.1:15000/config_dump"), `"originalDst"`)
	})
	last := f.ztunnel("node-1", a1, z.ns, "CONNECTION_TERMINATION_DEADLINE=1h")
	next.term()
	last.until("the predecessor to drain", func() bool {
		list := kept.Clients()
		return len(list) == 2 && list[0].State == handover.Draining && list[0].Open == 1 && list[1].State == handover.Serving
	})
	client.exchange(t, server.IP4, 7000)
	io.WriteString(open, "end")
	open.CloseWrite()
	if got, err := io.ReadAll(open); err != nil || !strings.HasSuffix(string(got), "begin end") {
		t.Errorf("a connection through the ztunnel that drains: %q, %v", got, err)
	}
	<-next.done // its last connection has ended, and so has it
	if list := kept.Clients(); len(list) != 1 {
		t.Errorf("ztunnels %+v", list)
	}
}

// TestZtunnelWithoutSuccessor: a ztunnel that is told to end while something is
// open goes on accepting until there is another one to do it.
func TestZtunnelWithoutSuccessor(t *testing.T) {
	t.Parallel()
	f := newField(t)
	client, server := f.pod("client", "node-1"), f.pod("server", "node-1")
	server.listen(t, 7000, echo)
	a := f.agent("node-1", client, server)
	kept := a.store(t)
	z := f.ztunnel("node-1", a, nil, "CONNECTION_TERMINATION_DEADLINE=1h")
	open := client.dial(t, server.IP4, 7000)
	io.WriteString(open, "hello")
	if _, err := io.ReadFull(open, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	z.term()
	z.until("it to leave", func() bool {
		list := kept.Clients()
		return len(list) == 1 && list[0].State == handover.Leaving
	})
	client.exchange(t, server.IP4, 7000)
	next := f.ztunnel("node-1", a, z.ns)
	next.until("the predecessor to drain", func() bool { return kept.Clients()[0].State == handover.Draining })
	client.exchange(t, server.IP4, 7000)
	open.Close()
	<-z.done
}
