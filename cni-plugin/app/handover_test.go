package app

import (
	"net"
	"syscall"
	"testing"

	"github.com/culvert-mesh/culvert/pkg/handover"
	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// TestSocketsGoWithTheirPods: the agent keeps sockets of pods that are in the mesh,
// for as long as they are; they would keep the pods' namespaces alive.
func TestSocketsGoWithTheirPods(t *testing.T) {
	w := newWorld(t)
	w.cfg.Handover = handover.PathOf(w.cfg.ZDS)
	w.namespace("ambient")
	w.pod("u1", "")
	w.pod("u2", "")
	w.start()
	z := w.ztunnel()
	w.await("ztunnel is connected", func() bool { return z.snapshots() > 0 })
	c := handover.NewClient(handover.ClientConfig{Path: w.cfg.Handover})
	w.await("attached", func() bool { return c.Attach() == nil })
	ended := make(chan struct{})
	ctx := t.Context()
	go func() { defer close(ended); c.Run(ctx) }()
	t.Cleanup(func() { <-ended })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, uid := range []string{"u1", "u2"} {
		ns, path := w.sandbox(uid)
		if code, text := w.cmdAdd(uid, path); code != 200 {
			t.Fatal(code, text)
		}
		handover.Stores{c}.Put(handover.Key{Pod: mesh.PodUID(uid), Namespace: ns.ID().String()},
			map[string]syscall.Conn{"tcp/15001": l.(*net.TCPListener), "tcp/15006": l.(*net.TCPListener)})
	}
	handover.Stores{c}.Put(handover.Key{Pod: "stranger"}, map[string]syscall.Conn{"x": l.(*net.TCPListener)})
	if st := w.agent.Status(); st.Sockets != 4 || len(st.Proxies) != 1 {
		t.Errorf("%d sockets held for %d ztunnels", st.Sockets, len(st.Proxies))
	}
	w.erase("pod-u1")
	w.await("the sockets of a deleted pod are gone", func() bool { return w.agent.Status().Sockets == 2 })
	w.namespace("none")
	w.await("the sockets of a pod that left are gone", func() bool { return w.agent.Status().Sockets == 0 })
}

// TestForeignZtunnel: what nobody will take over is let go of.
func TestForeignZtunnel(t *testing.T) {
	t.Parallel()
	of := func(states ...handover.State) (list []handover.ClientStatus) {
		for _, s := range states {
			list = append(list, handover.ClientStatus{Status: handover.Status{State: s}})
		}
		return list
	}
	for _, c := range []struct {
		what      string
		connected int
		clients   []handover.ClientStatus
		want      bool
	}{
		{"nobody: ours has crashed", 0, nil, false},
		{"only a foreign one", 1, nil, true},
		{"ours", 1, of(handover.Serving), false},
		{"ours and its successor", 2, of(handover.Draining, handover.Starting), false},
		{"ours drains beside a foreign one", 2, of(handover.Draining), true},
		{"ours drains alone", 1, of(handover.Draining), false},
		{"ours still accepts beside a foreign one", 2, of(handover.Leaving), false},
	} {
		if got := foreign(c.connected, c.clients); got != c.want {
			t.Errorf("%s: %v", c.what, got)
		}
	}
}
