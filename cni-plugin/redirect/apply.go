package redirect

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/culvert-mesh/culvert/pkg/netns"
)

// Apply makes the ruleset the only one of ours in the namespace, whatever was
// there before. The nftables rules change in one transaction: every packet meets
// either the old or the new ones, and open connections go on. Rules of another
// ambient mesh's agent in the namespace are removed in the same transaction.
func Apply(ns *netns.NS, rs Ruleset) error {
	if err := ns.Do(func() error { return errors.Join(setMigrate(rs.Proc), rs.addRouting()) }); err != nil {
		return fmt.Errorf("redirect: apply in %s: %w", ns.ID(), err)
	}
	if err := transact(ns, func(c *nftables.Conn) error {
		if err := removeForeign(c); err != nil {
			return err
		}
		rs.add(c)
		return nil
	}); err != nil {
		return fmt.Errorf("redirect: apply in %s: %w", ns.ID(), err)
	}
	return nil
}

// Drain replaces the rules of a pod that leaves the mesh: new connections are the
// pod's own affair, redirected ones go on. Call Remove once Redirected is 0. A
// namespace without rules stays without.
func Drain(ns *netns.NS, ipv6 bool) error {
	applied, err := Applied(ns)
	if err != nil || !applied {
		return err
	}
	if err := transact(ns, func(c *nftables.Conn) error { Draining(ipv6).add(c); return nil }); err != nil {
		return fmt.Errorf("redirect: drain %s: %w", ns.ID(), err)
	}
	return nil
}

// Remove takes everything of ours out of the namespace. Connections that are
// still redirected break. Removing twice is no error.
func Remove(ns *netns.NS) error {
	if err := removeTable(ns, TableName); err != nil {
		return fmt.Errorf("redirect: remove from %s: %w", ns.ID(), err)
	}
	if err := ns.Do(removeRouting); err != nil {
		return fmt.Errorf("redirect: remove from %s: %w", ns.ID(), err)
	}
	return nil
}

func removeTable(ns *netns.NS, name string) error {
	return transact(ns, func(c *nftables.Conn) error {
		t := &nftables.Table{Family: nftables.TableFamilyINet, Name: name}
		c.AddTable(t) // makes the removal idempotent
		c.DelTable(t)
		return nil
	})
}

// Applied reports whether the namespace has rules of ours.
func Applied(ns *netns.NS) (bool, error) { return hasTable(ns, TableName) }

func hasTable(ns *netns.NS, name string) (bool, error) {
	c, err := dial(ns)
	if err != nil {
		return false, err
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, fmt.Errorf("redirect: list tables of %s: %w", ns.ID(), err)
	}
	for _, t := range tables {
		if t.Name == name {
			return true, nil
		}
	}
	return false, nil
}

func dial(ns *netns.NS) (*nftables.Conn, error) {
	return nftables.New(nftables.WithNetNSFd(ns.FD()))
}

// transact sends what fill queues as one batch, which the kernel takes whole or
// not at all.
func transact(ns *netns.NS, fill func(*nftables.Conn) error) error {
	c, err := dial(ns)
	if err != nil {
		return err
	}
	if err := fill(c); err != nil {
		return err
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	return nil
}

// add queues the replacement of our table by the ruleset.
func (rs Ruleset) add(c *nftables.Conn) {
	t := &nftables.Table{Family: nftables.TableFamilyINet, Name: rs.table()}
	c.AddTable(t)
	c.DelTable(t)
	c.AddTable(t)
	for _, ch := range rs.Chains {
		chain := c.AddChain(&nftables.Chain{
			Table: t, Name: ch.Name, Type: nftables.ChainType(ch.Type),
			Hooknum: hook(ch.Hook), Priority: nftables.ChainPriorityRef(nftables.ChainPriority(ch.Priority)),
		})
		for _, r := range ch.Rules {
			c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: r.exprs()})
		}
	}
}

func (r Rule) exprs() (all []expr.Any) {
	for _, m := range r.Matches {
		all = append(all, m.exprs...)
	}
	return append(all, r.Action.exprs...)
}

func hook(name string) *nftables.ChainHook {
	switch name {
	case "output":
		return nftables.ChainHookOutput
	case "postrouting":
		return nftables.ChainHookPostrouting
	}
	return nftables.ChainHookPrerouting
}

// migrateSysctl lets connections that wait on a closing listener move to the
// listener of its successor, so that replacing a ztunnel refuses none.
const migrateSysctl = "net.ipv4.tcp_migrate_req"

// setMigrate runs inside the namespace: what sys/net of any procfs shows is that of
// the thread that opens it. Kernels before 5.14 do not have the setting, and lose
// only the connections of the moment in which a listener closes.
func setMigrate(proc string) error {
	err := os.WriteFile(filepath.Join(cmp.Or(proc, "/proc"), "sys/net/ipv4/tcp_migrate_req"), []byte("1\n"), 0o644)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
