package main

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// need is a program in the PATH, or a file, and the packages of Debian that bring it.
type need struct{ what, packages string }

// What a cluster runs with, and what is needed to build the container runtime, which is
// in C for a part.
var (
	toRun = []need{{"ip", "iproute2"}, {"nsenter", "util-linux"}, {"setpriv", "util-linux"},
		{"nft", "nftables"}, {"iptables", "iptables"}, {"conntrack", "conntrack"}}
	toBuild = []need{{"gcc", "gcc libc6-dev"}, {"pkg-config", "pkgconf"}, {"/usr/include/seccomp.h", "libseccomp-dev"}}
)

// require names everything that is missing, with the command that brings it.
func require(needs []need) error {
	var missing, packages []string
	for _, n := range needs {
		_, err := exec.LookPath(n.what)
		if strings.HasPrefix(n.what, "/") {
			_, err = os.Stat(n.what)
		}
		if err != nil {
			missing = append(missing, n.what)
			packages = append(packages, strings.Fields(n.packages)...)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	slices.Sort(packages)
	return fmt.Errorf("missing: %s: apt-get install -y --no-install-recommends %s", strings.Join(missing, ", "), strings.Join(slices.Compact(packages), " "))
}
