package redirect

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// Match is one condition, in nft syntax and as the kernel's expressions.
type Match struct {
	text  string
	exprs []expr.Any
}

// Action is what a rule does, in both forms.
type Action struct {
	text  string
	exprs []expr.Any
}

// reg is the only register used: every condition loads and compares it at once.
const reg = 1

func compare(op expr.CmpOp, data []byte) expr.Any {
	return &expr.Cmp{Op: op, Register: reg, Data: data}
}

func equal(data []byte) expr.Any { return compare(expr.CmpOpEq, data) }

func isTCP() Match { return protocol("tcp", unix.IPPROTO_TCP) }
func isUDP() Match { return protocol("udp", unix.IPPROTO_UDP) }

func protocol(name string, number byte) Match {
	return Match{"meta l4proto " + name, []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg}, equal([]byte{number})}}
}

// firstSegment matches the segment that opens a TCP connection: SYN without ACK.
func firstSegment() Match {
	const syn, ack = 0x02, 0x10
	return Match{"tcp flags & (syn | ack) == syn", []expr.Any{
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 1, Mask: []byte{syn | ack}, Xor: []byte{0}},
		equal([]byte{syn}),
	}}
}

func sourcePort(port uint16) Match { return portMatch("sport", 0, expr.CmpOpEq, port) }
func destPort(port uint16) Match   { return portMatch("dport", 2, expr.CmpOpEq, port) }

func destPortIsNot(port uint16) Match { return portMatch("dport", 2, expr.CmpOpNeq, port) }

// portMatch reads the first or second 16 bits of the transport header, where
// both TCP and UDP keep their ports.
func portMatch(field string, offset uint32, op expr.CmpOp, port uint16) Match {
	return Match{fmt.Sprintf("th %s %s%d", field, negation(op), port), []expr.Any{
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2},
		compare(op, binaryutil.BigEndian.PutUint16(port)),
	}}
}

func negation(op expr.CmpOp) string {
	if op == expr.CmpOpNeq {
		return "!= "
	}
	return ""
}

func sourceIs(a netip.Addr) Match {
	return addrMatch("saddr", 12, 8, expr.CmpOpEq, netip.PrefixFrom(a, a.BitLen()))
}

func destIs(a netip.Addr) Match {
	return addrMatch("daddr", 16, 24, expr.CmpOpEq, netip.PrefixFrom(a, a.BitLen()))
}

func destIsNot(p netip.Prefix) Match { return addrMatch("daddr", 16, 24, expr.CmpOpNeq, p) }

// addrMatch compares an address at its place in the IPv4 or the IPv6 header. It
// never matches packets of the other family.
func addrMatch(field string, offset4, offset6 uint32, op expr.CmpOp, p netip.Prefix) Match {
	family, name, offset := byte(unix.NFPROTO_IPV4), "ip", offset4
	if p.Addr().Is6() {
		family, name, offset = unix.NFPROTO_IPV6, "ip6", offset6
	}
	subject := p.String()
	if p.IsSingleIP() {
		subject = p.Addr().String()
	}
	n := uint32(p.Addr().BitLen() / 8)
	exprs := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg}, equal([]byte{family}),
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: n},
	}
	if !p.IsSingleIP() {
		exprs = append(exprs, &expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: n, Mask: mask(p), Xor: make([]byte, n)})
	}
	exprs = append(exprs, compare(op, p.Masked().Addr().AsSlice()))
	return Match{fmt.Sprintf("%s %s %s%s", name, field, negation(op), subject), exprs}
}

func mask(p netip.Prefix) []byte {
	m := make([]byte, p.Addr().BitLen()/8)
	for i := range p.Bits() {
		m[i/8] |= 0x80 >> (i % 8)
	}
	return m
}

func inInterface(name string) Match {
	return interfaceMatch("iifname", expr.MetaKeyIIFNAME, expr.CmpOpEq, name)
}

func outInterface(name string) Match {
	return interfaceMatch("oifname", expr.MetaKeyOIFNAME, expr.CmpOpEq, name)
}

func outInterfaceIsNot(name string) Match {
	return interfaceMatch("oifname", expr.MetaKeyOIFNAME, expr.CmpOpNeq, name)
}

func interfaceMatch(field string, key expr.MetaKey, op expr.CmpOp, name string) Match {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded[:unix.IFNAMSIZ-1], name)
	return Match{fmt.Sprintf("%s %s%q", field, negation(op), name),
		[]expr.Any{&expr.Meta{Key: key, Register: reg}, compare(op, padded)}}
}

func markIs(mark uint32) Match    { return markMatch("meta mark", metaMark(), expr.CmpOpEq, mark) }
func markIsNot(mark uint32) Match { return markMatch("meta mark", metaMark(), expr.CmpOpNeq, mark) }
func connMarkIs(mark uint32) Match {
	return markMatch("ct mark", &expr.Ct{Key: expr.CtKeyMARK, Register: reg}, expr.CmpOpEq, mark)
}

func metaMark() expr.Any { return &expr.Meta{Key: expr.MetaKeyMARK, Register: reg} }

func markMatch(field string, load expr.Any, op expr.CmpOp, mark uint32) Match {
	text := fmt.Sprintf("%s & %#x == %#x", field, mesh.MarkMask, mark)
	if op == expr.CmpOpNeq {
		text = fmt.Sprintf("%s & %#x != %#x", field, mesh.MarkMask, mark)
	}
	return Match{text, []expr.Any{load, maskMark(mesh.MarkMask, 0), compare(op, binaryutil.NativeEndian.PutUint32(mark))}}
}

func maskMark(and, xor uint32) expr.Any {
	return &expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4,
		Mask: binaryutil.NativeEndian.PutUint32(and), Xor: binaryutil.NativeEndian.PutUint32(xor)}
}

func accept() Action {
	return Action{"accept", []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}}
}

// redirectTo sends the packet to a port of the pod itself.
func redirectTo(port uint16) Action {
	return Action{fmt.Sprintf("redirect to :%d", port), []expr.Any{
		&expr.Immediate{Register: reg, Data: binaryutil.BigEndian.PutUint16(port)},
		&expr.Redir{RegisterProtoMin: reg, Flags: unix.NF_NAT_RANGE_PROTO_SPECIFIED},
	}}
}

// setConnMark sets the mark's low bits on the connection and leaves the others.
func setConnMark(mark uint32) Action {
	const keep = ^uint32(mesh.MarkMask)
	return Action{fmt.Sprintf("ct mark set ct mark & %#x | %#x", keep, mark), []expr.Any{
		&expr.Ct{Key: expr.CtKeyMARK, Register: reg},
		maskMark(keep, mark),
		&expr.Ct{Key: expr.CtKeyMARK, Register: reg, SourceRegister: true},
	}}
}

// restoreMark gives the packet the mark of its connection.
func restoreMark() Action {
	return Action{"meta mark set ct mark", []expr.Any{
		&expr.Ct{Key: expr.CtKeyMARK, Register: reg},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg, SourceRegister: true},
	}}
}

func setZone(zone uint16) Action {
	return Action{fmt.Sprintf("ct zone set %d", zone), []expr.Any{
		&expr.Immediate{Register: reg, Data: binaryutil.NativeEndian.PutUint16(zone)},
		&expr.Ct{Key: expr.CtKeyZONE, Register: reg, SourceRegister: true},
	}}
}
