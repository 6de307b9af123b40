// Package dns is the laptop cluster's name server: it answers for services and
// pods as Kubernetes specifies (DNS-based service discovery, version 1.1.0) and
// for nothing else.
//
//	cart.shop.svc.cluster.local              A, AAAA   the virtual addresses
//	db.shop.svc.cluster.local (headless)     A, AAAA   the ready pods
//	pod-0.db.shop.svc.cluster.local          A, AAAA   that pod
//	_http._tcp.cart.shop.svc.cluster.local   SRV       port and name
//	7.0.96.10.in-addr.arpa                   PTR       the name
//	10-244-1-5.shop.pod.cluster.local        A         the address in the name
//	anything else                            NXDOMAIN, at once: there is no upstream
//
// A Zone is immutable and its Answer is pure. A Server serves the newest Zone
// and is safe for concurrent use.
package dns

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// ttl of every answer, in seconds: what CoreDNS gives.
const ttl = 5

// Service is what the zone says about one service.
type Service struct {
	Namespace string
	Name      string
	Addrs     []netip.Addr // virtual addresses; none = headless
	Ports     []Port
	Endpoints []Endpoint // ready ones; used when headless
}

// Port is a named port of a service.
type Port struct {
	Name     string // "" has no SRV record
	Protocol string // "tcp" or "udp"
	Number   uint16
}

// Endpoint is one ready pod of a headless service.
type Endpoint struct {
	Hostname string // "" = made from the address
	Addrs    []netip.Addr
}

// Zone holds every record, by lower-case name.
type Zone struct {
	domain string // "cluster.local."
	names  map[string][]dns.RR
	exists map[string]bool // names in the middle: no records, and no NXDOMAIN
}

// NewZone builds the records of a cluster's domain, "cluster.local".
func NewZone(domain string, services []Service) *Zone {
	z := &Zone{domain: dns.Fqdn(strings.ToLower(domain)), names: map[string][]dns.RR{}, exists: map[string]bool{}}
	z.exist(z.domain)
	for _, s := range services {
		z.addService(s)
	}
	return z
}

func (z *Zone) addService(s Service) {
	name := strings.ToLower(s.Name + "." + s.Namespace + ".svc." + z.domain)
	z.exist(name)
	targets := []string{name}
	if len(s.Addrs) > 0 {
		for _, a := range s.Addrs {
			z.addAddr(name, a)
			z.addPTR(a, name)
		}
	} else {
		targets = z.addHeadless(name, s.Endpoints)
	}
	for _, p := range s.Ports {
		if p.Name == "" {
			continue
		}
		for _, target := range targets {
			srv := "_" + strings.ToLower(p.Name) + "._" + p.Protocol + "." + name
			z.add(&dns.SRV{Hdr: header(srv, dns.TypeSRV), Weight: uint16(100 / len(targets)), Port: p.Number, Target: target})
		}
	}
}

// addHeadless adds the pods behind a headless service, and returns their names.
func (z *Zone) addHeadless(service string, endpoints []Endpoint) (names []string) {
	for _, e := range endpoints {
		if len(e.Addrs) == 0 {
			continue
		}
		host := e.Hostname
		if host == "" {
			host = dashed(e.Addrs[0])
		}
		name := strings.ToLower(host) + "." + service
		for _, a := range e.Addrs {
			z.addAddr(service, a)
			z.addAddr(name, a)
			z.addPTR(a, name)
		}
		names = append(names, name)
	}
	return names
}

// dashed is an address as one label: 10-244-1-5, fd00-244-1--5.
func dashed(a netip.Addr) string {
	return strings.NewReplacer(".", "-", ":", "-").Replace(a.String())
}

func (z *Zone) addAddr(name string, a netip.Addr) {
	if a.Is4() {
		z.add(&dns.A{Hdr: header(name, dns.TypeA), A: a.AsSlice()})
	} else {
		z.add(&dns.AAAA{Hdr: header(name, dns.TypeAAAA), AAAA: a.AsSlice()})
	}
}

func (z *Zone) addPTR(a netip.Addr, name string) {
	if arpa, err := dns.ReverseAddr(a.String()); err == nil {
		z.add(&dns.PTR{Hdr: header(arpa, dns.TypePTR), Ptr: name})
	}
}

func (z *Zone) add(rr dns.RR) {
	name := rr.Header().Name
	z.names[name] = append(z.names[name], rr)
	z.exist(name)
}

// exist notes that name and every name above it exist (RFC 8020).
func (z *Zone) exist(name string) {
	for ; name != "" && !z.exists[name]; _, name, _ = strings.Cut(name, ".") {
		z.exists[name] = true
	}
}

func header(name string, typ uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: typ, Class: dns.ClassINET, Ttl: ttl}
}

// Answer answers one query.
func (z *Zone) Answer(q *dns.Msg) *dns.Msg {
	m := new(dns.Msg)
	m.SetReply(q)
	m.Authoritative = true
	m.RecursionAvailable = true // resolvers that insist on it would ask nobody else
	if len(q.Question) != 1 || q.Opcode != dns.OpcodeQuery {
		m.Rcode = dns.RcodeNotImplemented
		return m
	}
	question := q.Question[0]
	name := strings.ToLower(question.Name)
	records := z.names[name]
	if records == nil {
		records = z.podByAddress(name)
	}
	for _, rr := range records {
		if question.Qtype == rr.Header().Rrtype || question.Qtype == dns.TypeANY {
			m.Answer = append(m.Answer, rr)
		}
	}
	m.Extra = z.targets(m.Answer)
	if len(m.Answer) == 0 {
		m.Ns = []dns.RR{z.authority()}
		if len(records) == 0 && !z.exists[name] {
			m.Rcode = dns.RcodeNameError
		}
	}
	return m
}

// targets returns the addresses of the names that SRV records point at.
func (z *Zone) targets(answer []dns.RR) (extra []dns.RR) {
	for _, rr := range answer {
		if srv, ok := rr.(*dns.SRV); ok {
			extra = append(extra, z.names[srv.Target]...)
		}
	}
	return extra
}

// podByAddress answers names like 10-244-1-5.shop.pod.cluster.local, which exist
// for every address.
func (z *Zone) podByAddress(name string) []dns.RR {
	rest, ok := strings.CutSuffix(name, ".pod."+z.domain)
	if !ok {
		return nil
	}
	label, ns, ok := strings.Cut(rest, ".")
	if !ok || ns == "" || strings.Contains(ns, ".") {
		return nil
	}
	for _, sep := range []string{".", ":"} {
		a, err := netip.ParseAddr(strings.ReplaceAll(label, "-", sep))
		switch {
		case err != nil:
		case a.Is4():
			return []dns.RR{&dns.A{Hdr: header(name, dns.TypeA), A: a.AsSlice()}}
		default:
			return []dns.RR{&dns.AAAA{Hdr: header(name, dns.TypeAAAA), AAAA: a.AsSlice()}}
		}
	}
	return nil
}

// authority lets resolvers keep a negative answer as long as a positive one.
func (z *Zone) authority() dns.RR {
	h := header(z.domain, dns.TypeSOA)
	return &dns.SOA{Hdr: h, Ns: "ns.dns." + z.domain, Mbox: "hostmaster." + z.domain,
		Serial: 1, Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: ttl}
}

// Names returns every name with records, in order.
func (z *Zone) Names() []string {
	names := make([]string, 0, len(z.names))
	for n := range z.names {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}
