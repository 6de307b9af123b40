package netns_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/culvert-mesh/culvert/pkg/netns/netnstest"
)

func TestAddresses(t *testing.T) {
	t.Parallel()
	ns := netnstest.New(t)
	want := []netip.Addr{netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("fd00::7")}
	err := ns.Do(func() error {
		l, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		for _, text := range []string{"10.1.2.3/24", "fd00::7/64", "169.254.1.1/16"} {
			a, err := netlink.ParseAddr(text)
			if err != nil {
				return err
			}
			if err := netlink.AddrAdd(l, a); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	got, err := ns.Addresses()
	slices.SortFunc(got, netip.Addr.Compare)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("addresses %v, %v; want %v: neither loopback nor link-local", got, err, want)
	}
}
