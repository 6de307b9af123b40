package app

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/pkg/handover"
)

func TestConfigHandover(t *testing.T) {
	t.Parallel()
	base := []string{"FAKE_CA=true", "XDS_ADDRESS="}
	with := func(more ...string) Handover { return parse(t, append(base, more...)...).Handover }
	for _, c := range []struct {
		what string
		got  Handover
		want Handover
	}{
		{"defaults", with(), Handover{Socket: "/var/run/ztunnel/ztunnel.sock.handover", Overlap: time.Hour}},
		{"beside the agent's socket", with("INPOD_UDS=/a/z"), Handover{Socket: "/a/z.handover", Overlap: time.Hour}},
		{"no agent", with("INPOD_UDS="), Handover{Overlap: time.Hour}},
		{"none", with("HANDOVER_UDS="), Handover{Overlap: time.Hour}},
		{"elsewhere, and a supervisor", with("HANDOVER_UDS=/h", "HANDOVER_FD=3"), Handover{Socket: "/h", FD: 3, Overlap: time.Hour}},
		{"a pod that is killed after a while", with("HANDOVER_UDS=", "TERMINATION_GRACE_PERIOD_SECONDS=600"), Handover{Overlap: 595 * time.Second}},
		{"told", with("HANDOVER_UDS=", "CONNECTION_TERMINATION_DEADLINE=2h"), Handover{Overlap: 2 * time.Hour}},
	} {
		if c.got != c.want {
			t.Errorf("%s: %+v, want %+v", c.what, c.got, c.want)
		}
	}
}

func TestDiffers(t *testing.T) {
	t.Parallel()
	now := time.Unix(1e9, 0)
	serving := handover.Status{State: handover.Serving, Open: 1}
	for _, c := range []struct {
		what     string
		was, now handover.Status
		want     bool
	}{
		{"connections come and go", serving, handover.Status{State: handover.Serving, Open: 2}, false},
		{"the control plane goes", serving, handover.Status{State: handover.Serving, Open: 1, Contact: now, Away: true}, true},
		{"it drains", serving, handover.Status{State: handover.Draining, Open: 1}, true},
		{"a connection ends meanwhile", handover.Status{State: handover.Draining, Open: 2}, handover.Status{State: handover.Draining, Open: 1}, true},
	} {
		if got := differs(c.was, c.now); got != c.want {
			t.Errorf("%s: differs %v", c.what, got)
		}
	}
}

// TestListenersOn counts the listeners on a port: a second one is a successor's.
func TestListenersOn(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).AddrPort().Port()
	if n, err := listenersOn(port); n != 1 || err != nil {
		t.Errorf("%d listeners on %s, %v", n, netip.AddrPortFrom(netip.IPv6Unspecified(), port), err)
	}
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	l.Close()
	if n, err := listenersOn(port); n != 0 || err != nil {
		t.Errorf("%d listeners after it was closed, %v", n, err)
	}
}
