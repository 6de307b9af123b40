package hbone

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// Header is what a CONNECT carries besides its authority.
type Header struct {
	Baggage     string // describes the source workload: FormatBaggage
	Forwarded   string // the client's address and the service it called: FormatForwarded
	Traceparent string // one per connection, for logs: NewTraceparent
	Network     string // x-forwarded-network: the sender's network, across networks only
	Extra       []Field
}

// Field is one more header field. Name is in lower case.
type Field struct {
	Name  string
	Value string
}

// Baggage describes a workload, as its proxy tells the other end.
type Baggage struct {
	Cluster      string
	Namespace    string
	WorkloadType string // deployment, cronjob, pod or job; empty when there is no name
	WorkloadName string
	Service      string // canonical name
	Revision     string // canonical revision
	Region       string
	Zone         string
}

// FormatBaggage describes w; empty values are left out.
func FormatBaggage(w *mesh.Workload) string {
	return Baggage{
		Cluster:      string(w.Cluster),
		Namespace:    w.Namespace,
		WorkloadType: w.WorkloadType.String(),
		WorkloadName: w.WorkloadName,
		Service:      w.CanonicalName,
		Revision:     w.CanonicalRevision,
		Region:       w.Locality.Region,
		Zone:         w.Locality.Zone,
	}.String()
}

// String returns b as the value of a baggage header.
func (b Baggage) String() string {
	var s strings.Builder
	put := func(key, value string) {
		if value == "" {
			return
		}
		if s.Len() > 0 {
			s.WriteByte(',')
		}
		s.WriteString(key)
		s.WriteByte('=')
		s.WriteString(value)
	}
	put("k8s.cluster.name", b.Cluster)
	put("k8s.namespace.name", b.Namespace)
	put("k8s."+b.WorkloadType+".name", b.WorkloadName)
	put("service.name", b.Service)
	put("service.version", b.Revision)
	put("cloud.region", b.Region)
	put("cloud.availability_zone", b.Zone)
	return s.String()
}

// ParseBaggage reads a baggage header. What it does not know it skips; a key
// that comes twice keeps its last value.
func ParseBaggage(s string) Baggage {
	var b Baggage
	for member := range strings.SplitSeq(s, ",") {
		member, _, _ = strings.Cut(member, ";") // properties (W3C Baggage §3.2.1.4)
		key, value, ok := strings.Cut(member, "=")
		if ok {
			b.set(strings.TrimSpace(key), strings.TrimSpace(value))
		}
	}
	return b
}

func (b *Baggage) set(key, value string) {
	switch key {
	case "k8s.cluster.name":
		b.Cluster = value
	case "k8s.namespace.name":
		b.Namespace = value
	case "k8s.deployment.name", "k8s.cronjob.name", "k8s.pod.name", "k8s.job.name":
		b.WorkloadType = strings.TrimSuffix(strings.TrimPrefix(key, "k8s."), ".name")
		b.WorkloadName = value
	case "service.name":
		b.Service = value
	case "service.version":
		b.Revision = value
	case "cloud.region":
		b.Region = value
	case "cloud.availability_zone":
		b.Zone = value
	}
}

// FormatForwarded returns a forwarded header (RFC 7239): the client's address
// and, when host is not empty, the service that it called.
func FormatForwarded(client netip.AddrPort, host string) string {
	s := `for="` + client.String() + `"`
	if host != "" {
		s += ";host=" + host
	}
	return s
}

// Forwarded is what a forwarded header says.
type Forwarded struct {
	For  netip.AddrPort // zero when absent; port 0 when it names none
	Host string
}

// ParseForwarded reads the first element of a forwarded header. It skips what it
// does not know and leaves out what it cannot read.
func ParseForwarded(s string) Forwarded {
	var f Forwarded
	for s != "" {
		var name, value string
		var more bool
		name, value, s, more = nextPair(s)
		switch strings.ToLower(name) {
		case "for":
			f.For = parseNode(value)
		case "host":
			f.Host = value
		}
		if !more {
			break
		}
	}
	return f
}

// nextPair takes one name=value off s. more is false after the last pair of the
// element.
func nextPair(s string) (name, value, rest string, more bool) {
	i := strings.IndexAny(s, "=;,")
	if i < 0 {
		return "", "", "", false
	}
	if s[i] != '=' {
		return "", "", s[i+1:], s[i] == ';'
	}
	name, s = strings.TrimSpace(s[:i]), strings.TrimLeft(s[i+1:], " \t")
	if strings.HasPrefix(s, `"`) {
		value, s = unquote(s[1:])
	} else if i = strings.IndexAny(s, ";,"); i >= 0 {
		value, s = strings.TrimSpace(s[:i]), s[i:]
	} else {
		return name, strings.TrimSpace(s), "", false
	}
	i = strings.IndexAny(s, ";,")
	if i < 0 {
		return name, value, "", false
	}
	return name, value, s[i+1:], s[i] == ';'
}

// unquote reads a quoted-string whose opening quote has been read.
func unquote(s string) (value, rest string) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '"':
			return b.String(), s[i+1:]
		case s[i] == '\\' && i+1 < len(s):
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String(), ""
}

// parseNode reads the node of a for= parameter: an address, with or without a port.
func parseNode(s string) netip.AddrPort {
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	addr, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]"))
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(addr.Unmap(), 0)
}

// NewTraceparent returns a fresh traceparent (W3C Trace Context), not sampled.
func NewTraceparent() string {
	var id [24]byte
	rand.Read(id[:]) // never fails
	var s [55]byte
	copy(s[:], "00-")
	hex.Encode(s[3:35], id[:16])
	s[35] = '-'
	hex.Encode(s[36:52], id[16:])
	copy(s[52:], "-00")
	return string(s[:])
}

// Authority is where a CONNECT wants to go: an address or a hostname, and a port.
type Authority struct {
	Addr netip.Addr // valid when the authority is an address
	Host string     // otherwise this
	Port uint16
}

// ParseAuthority reads "ip:port", "[ip]:port" or "hostname:port".
func ParseAuthority(s string) (Authority, error) {
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return Authority{Addr: ap.Addr().Unmap(), Port: ap.Port()}, nil
	}
	i := strings.LastIndexByte(s, ':')
	if i <= 0 {
		return Authority{}, fmt.Errorf("parse authority %q: want host:port", s)
	}
	port, err := strconv.ParseUint(s[i+1:], 10, 16)
	if err != nil {
		return Authority{}, fmt.Errorf("parse authority %q: port is no number from 0 to 65535", s)
	}
	if strings.ContainsAny(s[:i], ":[]@/?# \t") {
		return Authority{}, fmt.Errorf("parse authority %q: malformed host", s)
	}
	return Authority{Host: s[:i], Port: uint16(port)}, nil
}

// String returns the authority as it goes on the wire.
func (a Authority) String() string {
	if a.Addr.IsValid() {
		return netip.AddrPortFrom(a.Addr, a.Port).String()
	}
	return a.Host + ":" + strconv.Itoa(int(a.Port))
}
