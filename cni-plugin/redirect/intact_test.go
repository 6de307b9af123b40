package redirect

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/culvert-mesh/culvert/pkg/netns"
	"github.com/culvert-mesh/culvert/pkg/netns/netnstest"
)

func damage(t *testing.T, ns *netns.NS, rs Ruleset) string {
	t.Helper()
	what, err := Damage(ns, rs)
	if err != nil {
		t.Fatal(err)
	}
	return what
}

// What the kernel shows of rules is what was applied, whatever their options.
func TestIntact(t *testing.T) {
	t.Parallel()
	ns := netnstest.New(t)
	probes := []Probe{{netip.MustParseAddr("10.0.0.1"), []uint16{80, 8080}}, {netip.MustParseAddr("fd00::1"), []uint16{80}}}
	for i, o := range []Options{
		{}, {IPv6: true}, {IPv6: true, DNSCapture: true}, {DNSCapture: true, ProbeSNAT: true, IPv6: true},
		{IPv6: true, Probes: probes}, {BypassInbound: true, VirtualInterfaces: []string{"kvm0", "kvm1"}},
	} {
		rs := Pod(o)
		apply(t, ns, rs)
		if what := damage(t, ns, rs); what != "" {
			t.Errorf("options %d: %s", i, what)
		}
		if other := Pod(Options{IPv6: true, Probes: probes[:1]}); damage(t, ns, other) == "" {
			t.Errorf("options %d: other rules are no damage", i)
		}
	}
	apply(t, ns, Draining(true))
	if what := damage(t, ns, Draining(true)); what != "" {
		t.Errorf("draining: %s", what)
	}
}

// TestDamage: whatever is broken is seen, told at once, and repaired by Apply.
func TestDamage(t *testing.T) {
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("there is no nft")
	}
	nft := func(ns *netns.NS, script string) error {
		cmd := exec.Command("nft", script)
		var out strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := ns.Start(cmd); err != nil {
			return err
		}
		if err := cmd.Wait(); err != nil {
			return fmt.Errorf("nft %s: %w: %s", script, err, out.String())
		}
		return nil
	}
	for _, c := range []struct {
		name, want string
		do         func(*netns.NS) error
		silent     bool // no change of nftables
	}{
		{name: "table", want: "the table is gone", do: func(ns *netns.NS) error { return nft(ns, "delete table inet culvert") }},
		{name: "everything", want: "the table is gone", do: func(ns *netns.NS) error { return nft(ns, "flush ruleset") }},
		{name: "rules", want: "chain nat-output has 0 rules", do: func(ns *netns.NS) error { return nft(ns, "flush chain inet culvert nat-output") }},
		{name: "chain", want: "chain mangle-output is gone", do: func(ns *netns.NS) error { return nft(ns, "delete chain inet culvert mangle-output") }},
		{name: "more", want: "chain nat-prerouting has 3 rules", do: func(ns *netns.NS) error { return nft(ns, "insert rule inet culvert nat-prerouting accept") }},
		{name: "replaced", want: "rule 1 of chain mangle-prerouting", do: func(ns *netns.NS) error {
			return nft(ns, "flush chain inet culvert mangle-prerouting; add rule inet culvert mangle-prerouting accept")
		}},
		{name: "rule for mark", want: "rule for mark 0x111", silent: true, do: func(ns *netns.NS) error {
			return ns.Do(func() error { return netlink.RuleDel(markRule(netlink.FAMILY_V4)) })
		}},
		{name: "route", want: "IPv6 route of table 100", silent: true, do: func(ns *netns.NS) error {
			return ns.Do(func() error {
				lo, err := netlink.LinkByName("lo")
				if err != nil {
					return err
				}
				return netlink.RouteDel(localRoute(lo, netlink.FAMILY_V6))
			})
		}},
		{name: "others", want: "", do: func(ns *netns.NS) error { return nft(ns, "add table inet somebody") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			ns := netnstest.New(t)
			rs := Pod(Options{IPv6: true})
			apply(t, ns, rs)
			noticed := make(chan struct{}, 1)
			w, err := NewWatch(ns, func() {
				select {
				case noticed <- struct{}{}:
				default:
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			if err := c.do(ns); err != nil {
				t.Fatal(err)
			}
			if !c.silent {
				select {
				case <-noticed:
				case <-time.After(2 * time.Minute):
					t.Error("the change was not told")
				}
			}
			if what := damage(t, ns, rs); !strings.Contains(what, c.want) || (what == "") != (c.want == "") {
				t.Errorf("damage %q, want %q", what, c.want)
			}
			apply(t, ns, rs)
			if what := damage(t, ns, rs); what != "" {
				t.Errorf("after the repair: %s", what)
			}
		})
	}
}
