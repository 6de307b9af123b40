package proxy

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/pkg/certs"
	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/pkg/hbone/h2"
	"github.com/culvert-mesh/culvert/pkg/hbone/hbonetest"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netns"
	"github.com/culvert-mesh/culvert/pkg/netns/netnstest"
	"github.com/culvert-mesh/culvert/pkg/workloads"
)

// TestUnhealthyRetires holds that the tunnels of a pod that is about to end, or not
// ready, take no more streams and lose none, and that it can be called all the same.
func TestUnhealthyRetires(t *testing.T) {
	ca := newTestCA(t)
	db, client := ca.server(serverURI), ca.svid(clientURI, time.Hour)
	pod, from := netnstest.Pair(t)
	store := dbStore(nil)
	node := newNode(t, store, certs.Fixed{db.ID: db})
	dup, err := pod.Dup()
	if err != nil {
		t.Fatal(err)
	}
	p := node.NewPod("uid", dbInfo, dup)
	start(t, p)
	program(t, pod, func(c net.Conn) { io.Copy(c, c) })

	pool := h2.NewPool(h2.PoolConfig{
		Dial: func(ctx context.Context, to netip.AddrPort) (*net.TCPConn, error) {
			return from.Dial(ctx, to, netns.DialOptions{})
		},
		TLS: func(context.Context, hbone.Peer) (*tls.Config, error) {
			return &tls.Config{Certificates: []tls.Certificate{client.Leaf}, InsecureSkipVerify: true, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13}, nil
		},
	})
	defer pool.Close()
	server := netnstest.PairA4.Addr()
	open := func() hbone.Stream {
		t.Helper()
		s, _, err := pool.Open(t.Context(), hbone.Peer{Source: client.ID, Addr: netip.AddrPortFrom(server, mesh.PortHBONE)},
			hbone.Request{Authority: netip.AddrPortFrom(server, 5432).String()})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	say := func(s hbone.Stream) {
		t.Helper()
		if _, err := s.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(s, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
	}
	old := open()
	defer old.Close()
	say(old)
	p.notice()
	if list := pool.Snapshot(); len(list) != 1 || list[0].State != "open" {
		t.Fatalf("a healthy pod: %+v", list)
	}

	w := *store.WorkloadByInfo(dbInfo, "")
	w.Status = mesh.Unhealthy
	store.Apply(workloads.Update{Workloads: []*mesh.Workload{&w}})
	p.notice()
	hbonetest.Until(t, "the tunnel is told to go away", func() bool { return pool.Snapshot()[0].State == "draining" })
	say(old)
	later := open()
	defer later.Close()
	if list := pool.Snapshot(); len(list) != 2 {
		t.Errorf("a new stream took the old tunnel: %+v", list)
	}
	p.notice()
	for _, c := range pool.Snapshot() {
		if c.State == "open" {
			return
		}
	}
	t.Error("what came later was told to go away too")
}
