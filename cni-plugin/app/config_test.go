package app

import (
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/pkg/netns/netnstest"
)

func mustAddrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func TestParseConfig(t *testing.T) {
	t.Parallel()
	required := []string{"--patches-out", "/p", "--netns-dir", "/n"}
	c, err := ParseConfig(append(required, "--folder", "/a", "--folder", "/b", "--admin-listen", ":15014", "--exclude-namespace", "infra"),
		[]string{"NODE_NAME=node-7", "ZTUNNEL_UDS_ADDRESS=/z.sock"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if c.Node != "node-7" || c.ZDS != "/z.sock" || !slices.Equal(c.Folders, []string{"/a", "/b"}) ||
		c.AdminListen != mustAddrPort("[::]:15014") || !slices.Equal(c.Enroll.ExcludedNamespaces, []string{"infra"}) {
		t.Errorf("config %+v", c)
	}
	for _, bad := range []struct {
		args []string
		want string
	}{
		{required, "--node"},
		{[]string{"--node", "n", "--netns-dir", "/n"}, "--patches-out"},
		{[]string{"--node", "n", "--patches-out", "/p"}, "--netns-dir"},
		{append(required, "--node", "n", "extra"), "extra"},
		{append(required, "--node", "n", "--admin-listen", "nowhere"), "--admin-listen"},
		{append(required, "--node", "n", "--log-format", "xml"), "--log-format"},
		{[]string{"--nonsense"}, "nonsense"},
	} {
		if _, err := ParseConfig(bad.args, nil, io.Discard); err == nil || !strings.Contains(err.Error(), bad.want) {
			t.Errorf("%q: %v", bad.args, err)
		}
	}
}

// An agent that has run and stopped holds no descriptor any more.
func TestNoDescriptorLeft(t *testing.T) {
	before := 0
	for round := range 3 {
		t.Run("", func(t *testing.T) {
			w := newWorld(t)
			w.namespace("ambient")
			w.pod("u1", "")
			_, path := w.sandbox("u1")
			w.start()
			z := w.ztunnel()
			w.await("ztunnel is connected", func() bool { return z.snapshots() > 0 })
			w.cmdAdd("u1", path)
			w.erase("pod-u1")
			w.await("the pod is forgotten", func() bool { return len(w.agent.Status().Pods) == 0 })
		})
		if round == 0 {
			before = netnstest.OpenFDs(t) // the first round opened what stays open for good
		}
	}
	if after := netnstest.OpenFDs(t); after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}
