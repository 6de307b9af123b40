package proxy

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/pkg/certs"
	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netns"
	"github.com/culvert-mesh/culvert/pkg/netns/netnstest"
	"github.com/culvert-mesh/culvert/pkg/run/runtest"
	"github.com/culvert-mesh/culvert/pkg/workloads"
)

// caller tells a client the address that it is seen from.
func caller(c net.Conn) {
	io.WriteString(c, c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap().String())
}

// TestSettings holds that each switch does what it says, either way.
func TestSettings(t *testing.T) {
	t.Parallel()
	server := netnstest.PairA4.Addr()
	for _, c := range []struct {
		what    string
		change  func(*Settings)
		baggage bool
		v6      bool // 15008 is open on IPv6
	}{
		{"by default", func(*Settings) {}, true, true},
		{"ENABLE_RESPONSE_BAGGAGE=false", func(s *Settings) { s.Baggage = false }, false, true},
		{"IPV6_ENABLED=false", func(s *Settings) { s.IPv6 = false }, true, false},
	} {
		t.Run(c.what, func(t *testing.T) {
			t.Parallel()
			ca := newTestCA(t)
			db := ca.server(serverURI)
			pod, client := netnstest.Pair(t)
			node := newNode(t, dbStore(nil), certs.Fixed{db.ID: db})
			c.change(&node.Settings)
			dup, err := pod.Dup()
			if err != nil {
				t.Fatal(err)
			}
			start(t, node.NewPod("uid", dbInfo, dup))
			program(t, pod, answerOK)
			_, resp, err := askAll(t, client, server, ca.svid(clientURI, time.Hour))
			if err != nil {
				t.Fatal(err)
			}
			if (resp.Baggage != "") != c.baggage {
				t.Errorf("baggage %q, want some: %v", resp.Baggage, c.baggage)
			}
			conn, err := client.Dial(t.Context(), netip.AddrPortFrom(netnstest.PairA6.Addr(), mesh.PortHBONE), netns.DialOptions{})
			if err == nil {
				conn.Close()
			}
			if c.v6 != (err == nil) || !c.v6 && !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("on IPv6: %v", err)
			}
		})
	}
}

// TestOrigSrc holds from where programs are called. That answers to a foreign
// address find back is up to the pod's ruleset.
func TestOrigSrc(t *testing.T) {
	t.Parallel()
	visitor, app := netnstest.PairB4.Addr(), netnstest.PairA4.Addr()
	for _, c := range []struct {
		on   bool
		own  mesh.Identity
		want netip.Addr
	}{{true, mesh.Identity{}, visitor}, {false, mesh.Identity{}, netip.Addr{}}, {true, mesh.Identity{ServiceAccount: "ztunnel"}, netip.Addr{}}} {
		node := newNode(t, dbStore(nil), nil)
		node.Settings.OrigSrc, node.Settings.OrigSrcMust = c.on, c.on
		p := node.NewOwn(dbInfo, c.own, netnstest.New(t))
		start(t, p)
		if got := p.originOf(visitor, app); got != c.want {
			t.Errorf("on %v, own %v: called from %s, want %s", c.on, c.own, got, c.want)
		}
	}
}

// TestPolicyLog holds that a denial is told at info level when that is asked for.
func TestPolicyLog(t *testing.T) {
	t.Parallel()
	for _, asked := range []bool{true, false} {
		ca := newTestCA(t)
		db := ca.server(serverURI)
		pod, client := netnstest.Pair(t)
		store := dbStore(nil)
		store.Apply(workloads.Update{Policies: []*mesh.Policy{{
			Name: mesh.PolicyName{Namespace: "shop", Name: "nobody"}, Scope: mesh.ScopeNamespace, Action: mesh.Deny,
			Rules: []mesh.Rule{{Clauses: []mesh.Clause{{Matches: []mesh.Match{{DestinationPorts: []uint16{5432}}}}}}},
		}}})
		node := newNode(t, store, certs.Fixed{db.ID: db})
		node.Settings.LogPolicy = asked
		var log runtest.Buffer // handlers may outlive the proxy
		node.Log = slog.New(slog.NewTextHandler(&log, nil))
		dup, err := pod.Dup()
		if err != nil {
			t.Fatal(err)
		}
		t.Run("serve", func(t *testing.T) {
			start(t, node.NewPod("uid", dbInfo, dup))
			_, err := ask(t, client, netnstest.PairA4.Addr(), ca.svid(clientURI, time.Hour))
			var status *hbone.StatusError
			if !errors.As(err, &status) || status.Status != 401 {
				t.Errorf("answered %v", err)
			}
		})
		if got := strings.Contains(log.String(), "policy=shop/nobody"); got != asked {
			t.Errorf("asked for %v, told %v: %s", asked, got, log.String())
		}
	}
}

// TestOwn holds that ztunnel's own ports are reached through a tunnel, under its
// own identity, and that it captures nothing in its own namespace.
func TestOwn(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t)
	own := ca.server("spiffe://own.example/ns/shop/sa/db") // of another trust domain than its workload says
	node := newNode(t, dbStore(nil), certs.Fixed{own.ID: own})
	node.Settings.OrigSrc, node.Settings.OrigSrcMust = true, true
	pod, client := netnstest.Pair(t)
	dup, err := pod.Dup()
	if err != nil {
		t.Fatal(err)
	}
	p := node.NewOwn(dbInfo, own.ID, dup)
	start(t, p)
	program(t, pod, caller)
	server := netnstest.PairA4.Addr()
	from, err := ask(t, client, server, ca.svid("spiffe://own.example/ns/shop/sa/prometheus", time.Hour))
	if err != nil || from != server.String() {
		t.Errorf("through a tunnel: called from %q, %v", from, err)
	}
	for _, port := range []uint16{mesh.PortOutbound, mesh.PortPlaintext} {
		if c, err := client.Dial(t.Context(), netip.AddrPortFrom(server, port), netns.DialOptions{}); err == nil {
			c.Close()
			t.Errorf("%d is open", port)
		}
	}
	p.Drain(t.Context())
	if c, err := client.Dial(t.Context(), netip.AddrPortFrom(server, mesh.PortHBONE), netns.DialOptions{}); err == nil {
		c.Close()
		t.Error("15008 is open after the drain")
	}
}
