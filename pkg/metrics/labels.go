package metrics

import (
	"slices"
	"strings"

	dto "github.com/prometheus/client_model/go"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// Reporter says which side counts.
type Reporter uint8

// Reporters.
const (
	Source Reporter = iota
	Destination
	Waypoint
)

func (r Reporter) String() string { return [...]string{"source", "destination", "waypoint"}[r] }

// Flow says who talks to whom; it decides the labels. Flows are compared by ==,
// workloads and services by address.
type Flow struct {
	Reporter            Reporter
	Source, Destination *mesh.Workload // nil = unknown
	Service             *mesh.Service  // nil = none
	SourceIdentity      mesh.Identity  // of the TLS connection, never of discovery
	DestinationIdentity mesh.Identity
	MutualTLS           bool // connection_security_policy
}

// unknown stands for every missing value.
const unknown = "unknown"

// maxValue bounds label values, which may come from a peer's headers. No name in
// Kubernetes is longer.
const maxValue = 256

// labelSet is a resolved set of labels, in upstream's order. (The exposition is
// sorted by name: client_golang insists, and to readers order means nothing.)
type labelSet struct {
	pairs    []*dto.LabelPair
	parties  [2]party // whose departure ends the series
	reporter Reporter
}

// sorted returns the labels as a scrape wants them. Sorting once per series takes
// a third off each scrape.
func (l *labelSet) sorted() []*dto.LabelPair {
	out := slices.Clone(l.pairs)
	slices.SortFunc(out, func(a, b *dto.LabelPair) int { return strings.Compare(a.GetName(), b.GetName()) })
	return out
}

// party is a workload as the labels name it.
type party struct{ namespace, workload string }

// gone reports whether one of the parties is known and does not exist any more.
func (l *labelSet) gone(alive func(namespace, workload string) bool) bool {
	for _, p := range l.parties {
		if p.workload != unknown && !alive(p.namespace, p.workload) {
			return true
		}
	}
	return false
}

// key is equal for equal label sets only.
func (l *labelSet) key() string {
	var b strings.Builder
	for _, p := range l.pairs {
		b.WriteString(p.GetValue())
		b.WriteByte(0xff) // never part of valid UTF-8
	}
	return b.String()
}

func (l *labelSet) add(name, value string) {
	l.pairs = append(l.pairs, pair(name, value))
}

// with returns a copy of l with one value replaced.
func (l *labelSet) with(name, value string) *labelSet {
	next := &labelSet{append([]*dto.LabelPair(nil), l.pairs...), l.parties, l.reporter}
	for i, p := range next.pairs {
		if p.GetName() == name {
			next.pairs[i] = pair(name, value)
		}
	}
	return next
}

// pair makes a label. A value that is not UTF-8 would fail the whole scrape.
func pair(name, value string) *dto.LabelPair {
	value = strings.ToValidUTF8(value, "\ufffd")
	if len(value) > maxValue {
		value = strings.ToValidUTF8(value[:maxValue], "")
	}
	if value == "" {
		value = unknown
	}
	return &dto.LabelPair{Name: &name, Value: &value}
}

// side is one end of a flow as labels see it.
type side struct {
	workload, namespace, canonical, revision, principal, cluster, region, zone string
}

func sideOf(w *mesh.Workload, id mesh.Identity) side {
	s := side{principal: id.String()}
	if w == nil {
		return s
	}
	s.workload, s.namespace, s.cluster = w.WorkloadName, w.Namespace, string(w.Cluster)
	s.canonical, s.revision = w.CanonicalName, w.CanonicalRevision
	s.region, s.zone = w.Locality.Region, w.Locality.Zone
	return s
}

func (s side) party() party {
	if s.workload == "" {
		return party{workload: unknown}
	}
	return party{s.namespace, s.workload}
}

// service is the destination service as labels see it.
type service struct{ host, namespace, name string }

func serviceOf(s *mesh.Service) service {
	if s == nil {
		return service{}
	}
	return service{s.Hostname, s.Namespace, s.Name}
}

func security(mutual bool) string {
	if mutual {
		return "mutual_tls"
	}
	return unknown
}

// tcpLabels returns the labels of istio_tcp_*, in ztunnel's order. Localities are
// only there when one of the workloads is known.
func tcpLabels(f Flow, flags string) *labelSet {
	src, dst := sideOf(f.Source, f.SourceIdentity), sideOf(f.Destination, f.DestinationIdentity)
	svc := serviceOf(f.Service)
	l := &labelSet{parties: [2]party{src.party(), dst.party()}, reporter: f.Reporter}
	l.add("reporter", f.Reporter.String())
	l.add("source_workload", src.workload)
	l.add("source_canonical_service", src.canonical)
	l.add("source_canonical_revision", src.revision)
	l.add("source_workload_namespace", src.namespace)
	l.add("source_principal", src.principal)
	l.add("source_app", src.canonical)
	l.add("source_version", src.revision)
	l.add("source_cluster", src.cluster)
	l.add("destination_service", svc.host)
	l.add("destination_service_namespace", svc.namespace)
	l.add("destination_service_name", svc.name)
	l.add("destination_workload", dst.workload)
	l.add("destination_canonical_service", dst.canonical)
	l.add("destination_canonical_revision", dst.revision)
	l.add("destination_workload_namespace", dst.namespace)
	l.add("destination_principal", dst.principal)
	l.add("destination_app", dst.canonical)
	l.add("destination_version", dst.revision)
	l.add("destination_cluster", dst.cluster)
	l.add("request_protocol", "tcp")
	l.add("response_flags", flags)
	l.add("connection_security_policy", security(f.MutualTLS))
	if f.Source != nil || f.Destination != nil {
		l.add("source_region", src.region)
		l.add("source_zone", src.zone)
		l.add("destination_region", dst.region)
		l.add("destination_zone", dst.zone)
	}
	return l
}

// requestLabels returns the labels of istio_requests_total and its histograms but
// for those of the response, which withResponse puts in.
func requestLabels(f RequestFlow) *labelSet {
	src, dst := sideOf(f.Source, f.SourceIdentity), sideOf(f.Destination, f.DestinationIdentity)
	svc := serviceOf(f.Service)
	l := &labelSet{parties: [2]party{src.party(), dst.party()}, reporter: f.Reporter}
	l.add("reporter", f.Reporter.String())
	l.add("source_workload", src.workload)
	l.add("source_workload_namespace", src.namespace)
	l.add("source_principal", src.principal)
	l.add("source_app", src.canonical)
	l.add("source_version", src.revision)
	l.add("source_canonical_service", src.canonical)
	l.add("source_canonical_revision", src.revision)
	l.add("source_cluster", src.cluster)
	l.add("destination_workload", dst.workload)
	l.add("destination_workload_namespace", dst.namespace)
	l.add("destination_principal", dst.principal)
	l.add("destination_app", dst.canonical)
	l.add("destination_version", dst.revision)
	l.add("destination_canonical_service", dst.canonical)
	l.add("destination_canonical_revision", dst.revision)
	l.add("destination_cluster", dst.cluster)
	l.add("destination_service", svc.host)
	l.add("destination_service_name", svc.name)
	l.add("destination_service_namespace", svc.namespace)
	l.add("request_protocol", f.Protocol)
	l.add("connection_security_policy", security(f.MutualTLS))
	return l
}

// withResponse returns l with the response's labels where upstream has them:
// before connection_security_policy, grpc_response_status for gRPC only.
func (l *labelSet) withResponse(k responseKey) *labelSet {
	last := len(l.pairs) - 1
	next := &labelSet{append([]*dto.LabelPair(nil), l.pairs[:last]...), l.parties, l.reporter}
	next.add("response_code", statusText(k.code))
	if k.grpc != "" {
		next.add("grpc_response_status", k.grpc)
	}
	next.add("response_flags", k.flags)
	next.pairs = append(next.pairs, l.pairs[last])
	return next
}
