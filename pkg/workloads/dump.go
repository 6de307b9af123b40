package workloads

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// Dump is the store's part of /config_dump, in the shape that istioctl's
// ztunnel-config commands parse.
type Dump struct {
	Workloads      []DumpWorkload                     `json:"workloads"`
	Services       []DumpService                      `json:"services"`
	Policies       []DumpPolicy                       `json:"policies"`
	StagedServices map[string]map[string]DumpEndpoint `json:"stagedServices"` // endpoints of services that are not known
}

// DumpWorkload is one workload.
type DumpWorkload struct {
	WorkloadIPs           []netip.Addr                 `json:"workloadIps"`
	Waypoint              *DumpGateway                 `json:"waypoint,omitempty"`
	NetworkGateway        *DumpGateway                 `json:"networkGateway,omitempty"`
	Protocol              string                       `json:"protocol"`
	NetworkMode           string                       `json:"networkMode"`
	UID                   string                       `json:"uid"`
	Name                  string                       `json:"name"`
	Namespace             string                       `json:"namespace"`
	TrustDomain           string                       `json:"trustDomain"`
	ServiceAccount        string                       `json:"serviceAccount"`
	Network               string                       `json:"network"`
	WorkloadName          string                       `json:"workloadName"`
	WorkloadType          string                       `json:"workloadType"`
	CanonicalName         string                       `json:"canonicalName"`
	CanonicalRevision     string                       `json:"canonicalRevision"`
	Hostname              string                       `json:"hostname"`
	Node                  string                       `json:"node"`
	NativeTunnel          bool                         `json:"nativeTunnel,omitempty"`
	ApplicationTunnel     *DumpAppTunnel               `json:"applicationTunnel,omitempty"`
	AuthorizationPolicies []string                     `json:"authorizationPolicies,omitempty"`
	Status                string                       `json:"status"`
	ClusterID             string                       `json:"clusterId"`
	Locality              DumpLocality                 `json:"locality"`
	Services              map[string]map[string]uint16 `json:"services"`
	Capacity              uint32                       `json:"capacity"`
}

// DumpGateway is a waypoint or a network gateway, "network/address" or
// "namespace/hostname".
type DumpGateway struct {
	Destination   string `json:"destination"`
	HBONEMTLSPort uint16 `json:"hboneMtlsPort"`
}

// DumpAppTunnel is an application tunnel.
type DumpAppTunnel struct {
	Protocol string  `json:"protocol"`
	Port     *uint16 `json:"port,omitempty"`
}

// DumpLocality says where a workload runs.
type DumpLocality struct {
	Region  string `json:"region,omitempty"`
	Zone    string `json:"zone,omitempty"`
	Subzone string `json:"subzone,omitempty"`
}

// DumpService is one service with its endpoints by UID.
type DumpService struct {
	Name             string                  `json:"name"`
	Namespace        string                  `json:"namespace"`
	Hostname         string                  `json:"hostname"`
	VIPs             []string                `json:"vips"`
	CIDRVIPs         []DumpCIDR              `json:"cidrVips,omitempty"`
	Ports            map[string]uint16       `json:"ports"`
	Endpoints        map[string]DumpEndpoint `json:"endpoints"`
	SubjectAltNames  []string                `json:"subjectAltNames,omitempty"`
	Waypoint         *DumpGateway            `json:"waypoint,omitempty"`
	WeightedWaypoint []DumpWeighted          `json:"weightedWaypoints,omitempty"`
	LoadBalancer     *DumpLoadBalancer       `json:"loadBalancer,omitempty"`
	IPFamilies       string                  `json:"ipFamilies,omitempty"`
	Canonical        bool                    `json:"canonical"`
	Visibility       string                  `json:"visibility"`
}

// DumpCIDR is a range of virtual addresses.
type DumpCIDR struct {
	CIDR    string `json:"cidr"`
	Network string `json:"network"`
}

// DumpWeighted is one of several waypoints.
type DumpWeighted struct {
	Destination DumpGateway `json:"destination"`
	Weight      uint32      `json:"weight"`
}

// DumpLoadBalancer is a service's load balancing.
type DumpLoadBalancer struct {
	RoutingPreferences []string `json:"routingPreferences"`
	Mode               string   `json:"mode"`
	HealthPolicy       string   `json:"healthPolicy"`
}

// DumpEndpoint is one workload of a service.
type DumpEndpoint struct {
	WorkloadUID string            `json:"workloadUid"`
	Service     string            `json:"service"`
	Port        map[string]uint16 `json:"port"`
	Status      string            `json:"status"`
}

// Dump copies the whole store; it costs memory in proportion. Lists are sorted.
func (s *Store) Dump() Dump {
	d := Dump{
		Workloads: []DumpWorkload{}, Services: []DumpService{}, Policies: []DumpPolicy{},
		StagedServices: map[string]map[string]DumpEndpoint{},
	}
	s.byUID.each(func(w *mesh.Workload) { d.Workloads = append(d.Workloads, dumpWorkload(w)) })
	slices.SortFunc(d.Workloads, func(a, b DumpWorkload) int { return cmp.Compare(a.UID, b.UID) })
	s.services.each(func(r *record) { d.Services = append(d.Services, s.dumpService(r.Service)) })
	slices.SortFunc(d.Services, func(a, b DumpService) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Hostname, b.Hostname))
	})
	var policies []*mesh.Policy
	s.policies.each(func(p *mesh.Policy) { policies = append(policies, p) })
	sortPolicies(policies)
	for _, p := range policies {
		d.Policies = append(d.Policies, dumpPolicy(p))
	}
	s.endpoints.each(func(e *endpointSet) {
		if s.Service(e.service) == nil {
			d.StagedServices[e.service.String()] = dumpEndpoints(e.service, e.list)
		}
	})
	return d
}

func dumpWorkload(w *mesh.Workload) DumpWorkload {
	d := DumpWorkload{
		WorkloadIPs: append([]netip.Addr{}, w.Addresses...),
		Waypoint:    dumpGateway(w.Waypoint), NetworkGateway: dumpGateway(w.NetworkGateway),
		Protocol: w.Protocol.String(), NetworkMode: w.NetworkMode.String(),
		UID: string(w.UID), Name: w.Name, Namespace: w.Namespace,
		TrustDomain: w.TrustDomain, ServiceAccount: w.ServiceAccount, Network: string(w.Network),
		WorkloadName: w.WorkloadName, WorkloadType: w.WorkloadType.String(),
		CanonicalName: w.CanonicalName, CanonicalRevision: w.CanonicalRevision,
		Hostname: w.Hostname, Node: w.Node, NativeTunnel: w.NativeTunnel,
		Status: w.Status.String(), ClusterID: string(w.Cluster), Locality: DumpLocality(w.Locality),
		Services: make(map[string]map[string]uint16, len(w.Services)), Capacity: w.Capacity,
	}
	if t := w.AppTunnel; t != nil {
		d.ApplicationTunnel = &DumpAppTunnel{Protocol: t.Protocol.String()}
		if t.Port != 0 {
			d.ApplicationTunnel.Port = &t.Port
		}
	}
	for _, p := range w.Policies {
		d.AuthorizationPolicies = append(d.AuthorizationPolicies, p.String())
	}
	for _, m := range w.Services {
		d.Services[m.Service.String()] = dumpPorts(m.Ports)
	}
	return d
}

func (s *Store) dumpService(svc *mesh.Service) DumpService {
	d := DumpService{
		Name: svc.Name, Namespace: svc.Namespace, Hostname: svc.Hostname,
		VIPs: []string{}, Ports: dumpPorts(svc.Ports), SubjectAltNames: svc.SubjectAltNames,
		Endpoints: dumpEndpoints(svc.Key(), s.Endpoints(svc.Key())),
		Waypoint:  dumpGateway(svc.Waypoint), Canonical: svc.Canonical, Visibility: "Public",
	}
	for _, a := range svc.VIPs {
		d.VIPs = append(d.VIPs, a.String())
	}
	for _, c := range svc.CIDRs {
		d.CIDRVIPs = append(d.CIDRVIPs, DumpCIDR{CIDR: c.Prefix.String(), Network: string(c.Network)})
	}
	for _, w := range svc.WeightedWaypoints {
		d.WeightedWaypoint = append(d.WeightedWaypoint, DumpWeighted{Destination: *dumpGateway(&w.Gateway), Weight: w.Weight})
	}
	if svc.IPFamilies != mesh.IPAutomatic {
		d.IPFamilies = svc.IPFamilies.String()
	}
	if svc.NamespaceOnly {
		d.Visibility = "Namespace"
	}
	if l := svc.LoadBalancing; l != nil {
		d.LoadBalancer = &DumpLoadBalancer{RoutingPreferences: []string{}, Mode: l.Mode.String(), HealthPolicy: "OnlyHealthy"}
		for _, p := range l.Preferences {
			d.LoadBalancer.RoutingPreferences = append(d.LoadBalancer.RoutingPreferences, p.String())
		}
		if l.AllowAll {
			d.LoadBalancer.HealthPolicy = "AllowAll"
		}
	}
	return d
}

func dumpGateway(g *mesh.Gateway) *DumpGateway {
	if g == nil {
		return nil
	}
	return &DumpGateway{Destination: g.String(), HBONEMTLSPort: cmp.Or(g.HBONEPort, mesh.PortHBONE)}
}

func dumpPorts(ports []mesh.Port) map[string]uint16 {
	m := make(map[string]uint16, len(ports))
	for _, p := range ports {
		m[strconv.Itoa(int(p.Service))] = p.Target
	}
	return m
}

func dumpEndpoints(name mesh.ServiceName, list []Endpoint) map[string]DumpEndpoint {
	m := make(map[string]DumpEndpoint, len(list))
	for _, e := range list {
		uid := string(e.Workload.UID)
		m[uid] = DumpEndpoint{WorkloadUID: uid, Service: name.String(), Port: dumpPorts(e.Ports), Status: e.Workload.Status.String()}
	}
	return m
}
