package dns

import (
	"math/rand/v2"
	"net/netip"

	"github.com/miekg/dns"
)

// ttl of every answer of the mesh, in seconds.
const ttl = 30

// respond makes the message of an answer; more than limit bytes are cut off and
// marked so. It is nil only for a name that no message can hold.
func (q *query) respond(a Answer, limit int) []byte {
	m := q.reply(dns.RcodeSuccess)
	m.Authoritative = true
	owner := q.question.Name
	if a.Alias != "" {
		target := dns.Fqdn(a.Alias)
		m.Answer = append(m.Answer, &dns.CNAME{Hdr: header(owner, dns.TypeCNAME), Target: target})
		owner = target
	}
	first := len(m.Answer)
	for _, ip := range a.Addrs {
		m.Answer = append(m.Answer, address(owner, ip))
	}
	for _, n := range a.Names {
		m.Answer = append(m.Answer, &dns.PTR{Hdr: header(owner, dns.TypePTR), Ptr: dns.Fqdn(n)})
	}
	for _, t := range a.Targets {
		name := dns.Fqdn(t.Name)
		m.Answer = append(m.Answer, &dns.SRV{Hdr: header(owner, dns.TypeSRV), Weight: 100 / uint16(min(len(a.Targets), 100)), Port: t.Port, Target: name})
		for _, ip := range t.Addrs {
			m.Extra = append(m.Extra, address(name, ip))
		}
	}
	rest := m.Answer[first:]
	rand.Shuffle(len(rest), func(i, j int) { rest[i], rest[j] = rest[j], rest[i] })
	return q.pack(m, limit)
}

// fail makes a message that says what went wrong, in words too if the client
// understands them.
func (q *query) fail(rcode int, code uint16, text string) []byte {
	m := q.reply(rcode)
	if opt := m.IsEdns0(); opt != nil && text != "" {
		opt.Option = append(opt.Option, &dns.EDNS0_EDE{InfoCode: code, ExtraText: text})
	}
	return q.pack(m, maxMessage)
}

func (q *query) reply(rcode int) *dns.Msg {
	m := new(dns.Msg)
	m.Id = q.id()
	m.Response = true
	m.Opcode = q.opcode
	m.Rcode = rcode
	m.RecursionAvailable = true
	m.RecursionDesired = q.raw[2]&0x01 != 0
	m.CheckingDisabled = q.raw[3]&0x10 != 0
	m.Compress = true
	if q.end > headerSize {
		m.Question = []dns.Question{{Name: q.question.Name, Qtype: q.question.Type, Qclass: q.class}}
	}
	if q.edns {
		opt := &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}}
		opt.SetUDPSize(q.size)
		opt.SetVersion(q.version)
		if q.dnssec {
			opt.SetDo()
		}
		m.Extra = append(m.Extra, opt)
	}
	return m
}

func (q *query) pack(m *dns.Msg, limit int) []byte {
	m.Truncate(limit)
	m.Compress = true
	b, err := m.Pack()
	if err != nil {
		return nil
	}
	return b
}

func header(name string, typ uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: typ, Class: dns.ClassINET, Ttl: ttl}
}

func address(name string, a netip.Addr) dns.RR {
	if a.Is4() {
		return &dns.A{Hdr: header(name, dns.TypeA), A: a.AsSlice()}
	}
	return &dns.AAAA{Hdr: header(name, dns.TypeAAAA), AAAA: a.AsSlice()}
}

// markStale says in an answer that it is older than it should be (RFC 8914), if the
// client understands that.
func markStale(msg []byte) []byte {
	m := new(dns.Msg)
	if m.Unpack(msg) != nil {
		return msg
	}
	opt := m.IsEdns0()
	if opt == nil {
		return msg
	}
	code := dns.ExtendedErrorCodeStaleAnswer
	if m.Rcode == dns.RcodeNameError {
		code = dns.ExtendedErrorCodeStaleNXDOMAINAnswer
	}
	opt.Option = append(opt.Option, &dns.EDNS0_EDE{InfoCode: code})
	m.Compress = true
	if b, err := m.Pack(); err == nil {
		return b
	}
	return msg
}
