package proof

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/pkg/golden"
)

// TestJudge: what was seen, and the condition that it makes.
func TestJudge(t *testing.T) {
	golden.Cases(t, "testdata/*.txtar", func(t *testing.T, c *golden.Case) {
		var s Seen
		d := json.NewDecoder(bytes.NewReader(c.Section(t, "seen")))
		d.DisallowUnknownFields()
		if err := d.Decode(&s); err != nil {
			t.Fatal(err)
		}
		status, reason, message := Judge(s).Condition()
		c.Want(t, "want", status+" "+reason+"\n"+strings.ReplaceAll(message, " | ", "\n")+"\n")
	})
}

func TestFirst(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, content := range map[string]string{
		"05-broken.conflist": `{"name":`,
		"10-net.conf":        `{"cniVersion":"1.0.0","name":"plain","type":"bridge"}`,
		"20-net.conflist":    `{"cniVersion":"1.0.0","name":"list","plugins":[{"type":"ptp"},{"type":"culvert-cni"}]}`,
		"00-saved.culvert":   `{"cniVersion":"1.0.0","name":"not read","type":"bridge"}`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	list, file, err := first(dir)
	if err != nil || file != "10-net.conf" || list.Name != "plain" || len(list.Plugins) != 1 {
		t.Errorf("%q %+v %v", file, list, err)
	}
	if err := os.Remove(filepath.Join(dir, "10-net.conf")); err != nil {
		t.Fatal(err)
	}
	if list, file, err = first(dir); err != nil || file != "20-net.conflist" || len(list.Plugins) != 2 {
		t.Errorf("%q %+v %v", file, list, err)
	}
	if _, _, err = first(t.TempDir()); err == nil {
		t.Error("an empty folder has a configuration")
	}
}

// TestPluginError: what a plugin says is what people read.
func TestPluginError(t *testing.T) {
	t.Parallel()
	fail := os.ErrInvalid
	for _, c := range []struct{ stdout, stderr, want string }{
		{`{"code":7,"msg":"no address","details":"the range is full"}`, "noise", "net: no address; the range is full"},
		{"", " panic: oh \n", "net: panic: oh"},
		{"nonsense", "", "net: " + fail.Error()},
	} {
		if got := pluginError("net", fail, []byte(c.stdout), []byte(c.stderr)).Error(); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
	got := nodeEnvironment([]string{"CNI_COMMAND=ADD", "SECRET=1", "PATH=/agent", "CNI_PATH=/opt"})
	if strings.Join(got, " ") != "CNI_COMMAND=ADD CNI_PATH=/opt" {
		t.Errorf("environment %q", got)
	}
}

func TestAnywhere(t *testing.T) {
	t.Parallel()
	dns := netip.MustParseAddrPort("10.96.0.10:53")
	for _, c := range []struct {
		dns  netip.AddrPort
		ip   string
		want string
	}{
		{dns, "10.0.0.5", "10.96.0.10:80"}, {netip.AddrPort{}, "10.0.0.5", "10.0.0.6:80"}, {dns, "fd00::5", "[2001:db8::1]:80"},
	} {
		if got := (Config{DNS: c.dns}).anywhere(netip.MustParseAddr(c.ip)).String(); got != c.want {
			t.Errorf("%s: %s, want %s", c.ip, got, c.want)
		}
	}
}
