// Package dns answers the DNS queries of the node's pods: names of the mesh from
// what the control plane told, everything else from the server that the pod
// itself asked.
//
//	pod's namespace                               which
//	  program ─53─▶ redirect ─▶ 15053 ─▶ Server ─▶ Find ─▶ known: answer, TTL 30
//	                                       │
//	                                       └▶ not: Forwarder ─▶ cache ─▶ shared query ─▶ the server asked
//
// names.go and answer.go are the decision, pure: which service or pod a client
// means by a name, and what it gets. reply.go makes the message of it. server.go
// serves the sockets of one pod. forward.go, exchange.go and cache.go carry what
// is not ours; message.go reads just enough of a message for that, so that what is
// forwarded stays as it was, byte for byte. resolver.go looks hosts up for ztunnel
// itself, through the same Forwarder.
//
// What is bounded: queries that wait for somebody else (per pod and per node),
// connections, and the bytes of all caches together. Beyond a bound a query gets
// SERVFAIL with the reason, over UDP and TCP, and is counted; a connection waits
// until another one ends, and only then, or in too long a queue, is reset.
//
// Everything is safe for concurrent use.
package dns

import (
	"net/netip"
	"strings"

	"github.com/miekg/dns"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// Zone says what names of services end in, and whose go first.
type Zone struct {
	Domain    string // of the cluster, such as "cluster.local"
	Preferred string // namespace whose services go before others of that hostname; "" = none
}

func (z Zone) domain() string { return strings.ToLower(strings.Trim(z.Domain, ".")) }

// Question is what a client asks for.
type Question struct {
	Name string // with or without the final dot, in any case
	Type uint16 // as in RFC 1035
}

// Answer is what the mesh knows. The zero Answer is nothing: the question is for
// somebody else.
type Answer struct {
	Known bool // the name is one of the mesh's; with nothing else it has no such records
	// Alias, when set, is the name that the client meant: an answer says so with a
	// CNAME, and the addresses are the alias's.
	Alias   string
	Addrs   []netip.Addr
	Targets []Target         // of a query for SRV
	Names   []string         // of a query for PTR
	Service mesh.ServiceName // that the name is one of
}

// Target is one SRV record.
type Target struct {
	Name  string
	Port  uint16
	Addrs []netip.Addr
}

// wants returns whether a question of that type is answered with the address.
func wants(qtype uint16, a netip.Addr) bool {
	switch qtype {
	case dns.TypeA:
		return a.Is4()
	case dns.TypeAAAA:
		return a.Is6()
	}
	return qtype == dns.TypeANY
}
