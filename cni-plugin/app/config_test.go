package app

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/pkg/netns/netnstest"
	"github.com/culvert-mesh/culvert/pkg/run/runtest"
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
		c.AdminListen != mustAddrPort("[::]:15014") || c.Handover != "/z.sock.handover" || !slices.Equal(c.Enroll.ExcludedNamespaces, []string{"infra"}) {
		t.Errorf("config %+v", c)
	}
	if c, err := ParseConfig(append(required, "--node", "n", "--handover", "none"), nil, io.Discard); err != nil || c.Handover != "" {
		t.Errorf("no handover: %q, %v", c.Handover, err)
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
		{append(required, "--node", "n", "--uninstall"), "--cni-conf-dir"},
		{append(required, "--node", "n", "--cni-conf-dir", "/c"), "--eligibility"},
		{[]string{"--kube", "--node", "n", "--root-configmap", "roots"}, "--namespace"},
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

// get asks the agent on its socket.
func get(t *testing.T, socket, path string) (int, string) {
	t.Helper()
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	defer tr.CloseIdleConnections()
	res, err := (&http.Client{Transport: tr}).Get("http://agent" + path)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(text)
}

func TestMainProgram(t *testing.T) {
	t.Parallel()
	w := newWorld(t) // for its folders
	w.namespace("ambient")
	w.pod("u1", "")
	ctx, cancel := context.WithCancel(t.Context())
	var log runtest.Buffer
	ended := make(chan error, 1)
	args := []string{"--node", "node-1", "--socket", w.cfg.Socket, "--zds", w.cfg.ZDS, "--objects", w.cfg.Objects[0],
		"--patches-out", w.cfg.PatchesOut, "--netns-dir", w.cfg.NetnsDir}
	go func() { ended <- Main(ctx, args, nil, &log) }()
	w.agent = New(w.cfg, Parts{}) // only so that await can show a status
	w.await("the agent is ready", func() bool { code, _ := get(t, w.cfg.Socket, "/readyz"); return code == http.StatusOK })
	_, text := get(t, w.cfg.Socket, "/status")
	var st Status
	if err := json.Unmarshal([]byte(text), &st); err != nil || len(st.Pods) != 1 || !st.Pods[0].InMesh || st.Node != "node-1" {
		t.Errorf("status %s, %v", text, err)
	}
	if code, text := get(t, w.cfg.Socket, "/metrics"); code != http.StatusOK || !strings.Contains(text, `nodeagent_reconcile_events_total{type="add"} 1`) ||
		!strings.Contains(text, "ztunnel_connected 0") {
		t.Errorf("metrics: %d %s", code, text)
	}
	if code, _ := get(t, w.cfg.Socket, "/cmdadd"); code != http.StatusMethodNotAllowed && code != http.StatusNotFound {
		t.Errorf("GET /cmdadd: %d", code)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("ended with %v", err)
	}
	if !strings.Contains(log.String(), "node agent started") {
		t.Errorf("log %q", log.String())
	}
}
