package laptop

import (
	"errors"
	"fmt"
	"os"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/pkg/netns"
)

// HintError is an error for a person, with what to do about it.
type HintError struct {
	Err  error
	Hint string
}

func (e *HintError) Error() string { return e.Err.Error() }
func (e *HintError) Unwrap() error { return e.Err }

// WithHint adds what to do to an error.
func WithHint(err error, format string, args ...any) error {
	return &HintError{err, fmt.Sprintf(format, args...)}
}

// Check makes sure that this machine can run a mesh, and says what is missing:
// root, network namespaces, nftables with what the rules need.
func Check() error {
	if os.Geteuid() != 0 {
		return WithHint(errors.New("this needs root: pods are network namespaces"), "run it with sudo")
	}
	ns, err := netns.NewUnnamed()
	if err != nil {
		if errors.Is(err, unix.EPERM) {
			return WithHint(fmt.Errorf("this process may not make network namespaces: %w", err),
				"it needs CAP_SYS_ADMIN; in a container, run that with --privileged")
		}
		return WithHint(err, "the kernel needs CONFIG_NET_NS")
	}
	defer ns.Close()
	return checkNftables(ns)
}

// checkNftables makes a table with a redirecting chain in a namespace of its own.
func checkNftables(ns *netns.NS) error {
	c, err := nftables.New(nftables.WithNetNSFd(ns.FD()))
	if err == nil {
		t := c.AddTable(&nftables.Table{Name: "check", Family: nftables.TableFamilyINet})
		c.AddChain(&nftables.Chain{Name: "check", Table: t, Type: nftables.ChainTypeNAT,
			Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest})
		err = c.Flush()
	}
	if err != nil {
		return WithHint(fmt.Errorf("the kernel has no usable nftables: %w", err),
			"it needs CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET, CONFIG_NFT_NAT and CONFIG_NFT_REDIR (modules nf_tables, nft_chain_nat)")
	}
	return nil
}
