package vips

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/pkg/netns"
)

// tableName is the table that Apply owns.
const tableName = "culvert-services"

// Apply makes the namespace's rules those of r, in one transaction.
func Apply(ns *netns.NS, r Ruleset) error {
	c, err := nftables.New(nftables.WithNetNSFd(ns.FD()))
	if err != nil {
		return fmt.Errorf("apply virtual addresses: %w", err)
	}
	r = r.Normal()
	table := &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
	c.AddTable(table) // so that deleting it cannot fail
	c.DelTable(table)
	c.AddTable(table)
	for _, hook := range []*nftables.Chain{
		{Name: "prerouting", Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest},
		{Name: "output", Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest},
	} {
		hook.Table, hook.Type = table, nftables.ChainTypeNAT
		translate(c, c.AddChain(hook), r.Services)
	}
	ownWayBack(c, c.AddChain(&nftables.Chain{Name: "postrouting", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource}), r.Services)
	for _, hook := range []*nftables.Chain{
		{Name: "forward", Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter},
		{Name: "outgoing", Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter},
	} {
		hook.Table, hook.Type = table, nftables.ChainTypeFilter
		refuse(c, c.AddChain(hook), r.Ranges)
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("apply virtual addresses: nftables: %w", err)
	}
	return nil
}

// translate adds one rule for each endpoint: of n that are left, the first is
// taken with probability 1/n.
func translate(c *nftables.Conn, chain *nftables.Chain, services []Service) {
	for _, s := range services {
		for i, e := range s.Endpoints {
			exprs := matchAddr(s.Addr.Addr())
			exprs = append(exprs, matchPort(s.Protocol, s.Addr.Port())...)
			exprs = append(exprs, oneOf(len(s.Endpoints)-i)...)
			exprs = append(exprs, dnat(e)...)
			c.AddRule(&nftables.Rule{Table: chain.Table, Chain: chain, Exprs: exprs})
		}
	}
}

// ownWayBack lets a pod that is its own endpoint reach itself: its packets would
// come back from its own address, which no host accepts, so they come back from
// the node's.
func ownWayBack(c *nftables.Conn, chain *nftables.Chain, services []Service) {
	seen := map[netip.Addr]bool{}
	for _, s := range services {
		for _, e := range s.Endpoints {
			a := e.Addr()
			if seen[a] {
				continue
			}
			seen[a] = true
			exprs := append(matchAddr(a), source(a), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a.AsSlice()}, &expr.Masq{})
			c.AddRule(&nftables.Rule{Table: chain.Table, Chain: chain, Exprs: exprs})
		}
	}
}

func refuse(c *nftables.Conn, chain *nftables.Chain, ranges []netip.Prefix) {
	for _, p := range ranges {
		tcp := append(matchPrefix(p), matchProtocol(TCP)...)
		tcp = append(tcp, &expr.Reject{Type: unix.NFT_REJECT_TCP_RST})
		c.AddRule(&nftables.Rule{Table: chain.Table, Chain: chain, Exprs: tcp})
		other := append(matchPrefix(p), &expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH})
		c.AddRule(&nftables.Rule{Table: chain.Table, Chain: chain, Exprs: other})
	}
}

func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.NFPROTO_IPV4
	}
	return unix.NFPROTO_IPV6
}

func matchFamily(a netip.Addr) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family(a)}},
	}
}

// destination loads the destination address: offset 16 of an IPv4 header and 24
// of an IPv6 one.
func destination(a netip.Addr) expr.Any {
	offset := uint32(16)
	if a.Is6() {
		offset = 24
	}
	return &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(a.BitLen() / 8)}
}

// source loads the source address, at offset 12 or 8.
func source(a netip.Addr) expr.Any {
	offset := uint32(12)
	if a.Is6() {
		offset = 8
	}
	return &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(a.BitLen() / 8)}
}

func matchAddr(a netip.Addr) []expr.Any {
	return append(matchFamily(a), destination(a), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a.AsSlice()})
}

func matchPrefix(p netip.Prefix) []expr.Any {
	a := p.Masked().Addr()
	n := a.BitLen() / 8
	mask := make([]byte, n)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return append(matchFamily(a), destination(a),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(n), Mask: mask, Xor: make([]byte, n)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a.AsSlice()})
}

func matchProtocol(p Protocol) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{byte(p)}},
	}
}

func matchPort(p Protocol, port uint16) []expr.Any {
	return append(matchProtocol(p),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, port)})
}

// oneOf matches once in n times.
func oneOf(n int) []expr.Any {
	if n <= 1 {
		return nil
	}
	return []expr.Any{
		&expr.Numgen{Register: 1, Modulus: uint32(n), Type: unix.NFT_NG_RANDOM},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(0)},
	}
}

func dnat(to netip.AddrPort) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: to.Addr().AsSlice()},
		&expr.Immediate{Register: 2, Data: binary.BigEndian.AppendUint16(nil, to.Port())},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(family(to.Addr())), RegAddrMin: 1, RegProtoMin: 2, Specified: true},
	}
}
