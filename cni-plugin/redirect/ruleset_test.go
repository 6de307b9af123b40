package redirect

import (
	"net/netip"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/culvert-mesh/culvert/pkg/golden"
	"github.com/culvert-mesh/culvert/pkg/netns"
	"github.com/culvert-mesh/culvert/pkg/netns/netnstest"
	"github.com/culvert-mesh/culvert/pkg/run/runtest"
)

func goldenOptions() map[string]Ruleset {
	node := Probe{Source: netip.MustParseAddr("10.244.1.1"), Ports: []uint16{9090, 8080, 8080}}
	node6 := Probe{Source: netip.MustParseAddr("fd00:244:1::1"), Ports: []uint16{8080}}
	return map[string]Ruleset{
		"ipv4":           Pod(Options{}),
		"dual":           Pod(Options{IPv6: true}),
		"probes":         Pod(Options{IPv6: true, Probes: []Probe{node, node6}}),
		"probes-v4-only": Pod(Options{Probes: []Probe{node, node6}}),
		"probe-snat":     Pod(Options{IPv6: true, ProbeSNAT: true}),
		"dns":            Pod(Options{IPv6: true, DNSCapture: true}),
		"bypass-inbound": Pod(Options{IPv6: true, BypassInbound: true, ProbeSNAT: true, Probes: []Probe{node}}),
		"virtual":        Pod(Options{VirtualInterfaces: []string{"tap0", "tap1"}}),
		"draining":       Draining(true),
		"node":           Node([]netip.Addr{netip.MustParseAddr("10.244.1.9"), netip.MustParseAddr("fd00:244:1::9"), netip.MustParseAddr("10.244.1.8")}),
	}
}

func TestRulesetGolden(t *testing.T) {
	t.Parallel()
	for name, rs := range goldenOptions() {
		golden.File(t, filepath.Join("testdata", name+".nft"), rs.String())
	}
}

// Each rule is written twice, as text and as expressions. Where nft(8) is
// installed it says whether the kernel got the same from both.
func TestTextAndNetlinkAgree(t *testing.T) {
	t.Parallel()
	nft, err := exec.LookPath("nft")
	if err != nil {
		t.Skip("nft(8), the oracle of this test, is not installed")
	}
	for name, rs := range goldenOptions() {
		byText, byNetlink := netnstest.New(t), netnstest.New(t)
		run(t, byText, nft, "-f", filepath.Join("testdata", name+".nft"))
		apply := Apply
		if rs.Table != "" {
			apply = ApplyNode
		}
		if err := apply(byNetlink, rs); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got, want := list(t, byNetlink, nft, rs.table()), list(t, byText, nft, rs.table())
		if got != want {
			t.Errorf("%s: by netlink\n%sby nft\n%s", name, got, want)
		}
	}
}

// redundant is what nft(8) prints or not depending on who made the rule.
var redundant = regexp.MustCompile(`meta (nfproto ipv[46]|l4proto (tcp|udp)) `)

func list(t *testing.T, ns *netns.NS, nft, table string) string {
	t.Helper()
	return redundant.ReplaceAllString(run(t, ns, nft, "list", "table", "inet", table), "")
}

func run(t *testing.T, ns *netns.NS, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	out := &runtest.Buffer{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := ns.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return out.String()
}
