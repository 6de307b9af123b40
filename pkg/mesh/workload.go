package mesh

import "net/netip"

// TunnelProtocol says how a workload expects to be reached.
type TunnelProtocol uint8

const (
	TCP   TunnelProtocol = iota // plain TCP to its address
	HBONE                       // a tunnel to port 15008 of its address
)

func (p TunnelProtocol) String() string { return [...]string{"TCP", "HBONE"}[p] }

// Health is a workload's readiness as the control plane knows it.
type Health uint8

const (
	Healthy Health = iota
	Unhealthy
)

func (h Health) String() string { return [...]string{"Healthy", "Unhealthy"}[h] }

// NetworkMode says whether the workload owns its address.
type NetworkMode uint8

const (
	NetworkStandard NetworkMode = iota
	NetworkHost                 // shares its node's address: never found by IP
)

func (m NetworkMode) String() string { return [...]string{"Standard", "HostNetwork"}[m] }

// WorkloadType is the kind of the controller that owns the workload.
type WorkloadType uint8

const (
	Deployment WorkloadType = iota
	CronJob
	Pod
	Job
)

func (t WorkloadType) String() string {
	return [...]string{"deployment", "cronjob", "pod", "job"}[t]
}

// Gateway points at a waypoint or a network gateway, by address or by hostname;
// exactly one of the two is set.
type Gateway struct {
	Address   NetAddr     // valid when Address.Addr is valid
	Service   ServiceName // else this; a Service, or a Workload with that namespace and hostname
	HBONEPort uint16      // the gateway's port for mutual TLS; 0 = PortHBONE
}

// ByAddress reports whether the gateway is named by an address.
func (g Gateway) ByAddress() bool { return g.Address.Addr.IsValid() }

// String returns "network/address" or "namespace/hostname".
func (g Gateway) String() string {
	if g.ByAddress() {
		return g.Address.String()
	}
	return g.Service.String()
}

// WeightedGateway is one of several waypoints that share a service's traffic.
type WeightedGateway struct {
	Gateway Gateway
	Weight  uint32
}

// AppTunnelProtocol is how a workload wants the original addresses told.
type AppTunnelProtocol uint8

const (
	AppTunnelNone AppTunnelProtocol = iota
	AppTunnelPROXY
)

func (p AppTunnelProtocol) String() string { return [...]string{"NONE", "PROXY"}[p] }

// AppTunnel asks for traffic to a workload to be delivered on another port,
// with or without a PROXY protocol header. Port 0 keeps the port.
type AppTunnel struct {
	Protocol AppTunnelProtocol
	Port     uint16
}

// AppProtocol is what an application speaks on a service's port.
type AppProtocol uint8

const (
	AppUnknown AppProtocol = iota
	AppHTTP11
	AppHTTP2
	AppGRPC
	AppTCP
	AppTLS
)

func (p AppProtocol) String() string {
	return [...]string{"UNKNOWN", "HTTP11", "HTTP2", "GRPC", "TCP", "TLS"}[p]
}

// Port maps a service's port to the port that a workload listens on.
// Target 0 means that the workload does not serve it.
type Port struct {
	Service  uint16
	Target   uint16
	Protocol AppProtocol
}

// Membership makes a workload an endpoint of a service.
type Membership struct {
	Service ServiceName
	Ports   []Port // by service port, ascending
}

// Workload is one pod, or one address outside the cluster that a service
// selects (istio.workload.Workload).
type Workload struct {
	UID               UID
	Name              string
	Namespace         string
	Addresses         []netip.Addr
	Hostname          string // resolved by DNS when there is no address
	Network           Network
	Cluster           Cluster
	Protocol          TunnelProtocol
	TrustDomain       string
	ServiceAccount    string
	Node              string
	Waypoint          *Gateway
	NetworkGateway    *Gateway
	CanonicalName     string
	CanonicalRevision string
	WorkloadType      WorkloadType
	WorkloadName      string
	NativeTunnel      bool // terminates HBONE itself
	AppTunnel         *AppTunnel
	Services          []Membership // by service name, ascending
	Policies          []PolicyName // that select this workload, in wire order
	Status            Health
	Locality          Locality
	NetworkMode       NetworkMode
	Capacity          uint32 // relative weight among endpoints; 0 takes no traffic
}

// Identity returns the identity that the workload's certificate carries.
func (w *Workload) Identity() Identity {
	return Identity{w.TrustDomain, w.Namespace, w.ServiceAccount}
}

// Member returns how w serves the named service.
func (w *Workload) Member(name ServiceName) (Membership, bool) {
	for _, m := range w.Services {
		if m.Service == name {
			return m, true
		}
	}
	return Membership{}, false
}

// LocalityScope is one thing that an endpoint may have in common with a client.
type LocalityScope uint8

const (
	ScopeRegion LocalityScope = iota + 1
	ScopeZone
	ScopeSubzone
	ScopeNode
	ScopeCluster
	ScopeNetwork
)

func (s LocalityScope) String() string {
	return [...]string{"", "Region", "Zone", "Subzone", "Node", "Cluster", "Network"}[s]
}

// BalanceMode is how strictly a service prefers endpoints near the client.
type BalanceMode uint8

const (
	BalanceStandard    BalanceMode = iota // all healthy endpoints alike
	BalanceStrict                         // only endpoints that match every preference
	BalanceFailover                       // the best matching ones there are
	BalancePassthrough                    // to the address that was dialled
)

func (m BalanceMode) String() string {
	return [...]string{"Standard", "Strict", "Failover", "Passthrough"}[m]
}

// LoadBalancing is how a service's endpoint is picked.
type LoadBalancing struct {
	Preferences []LocalityScope // most important first
	Mode        BalanceMode
	AllowAll    bool // unhealthy endpoints take traffic too
}

// IPFamilies restricts which of its endpoints' addresses a service uses.
type IPFamilies uint8

const (
	IPAutomatic IPFamilies = iota
	IPv4Only
	IPv6Only
	IPDual
)

func (f IPFamilies) String() string {
	return [...]string{"Automatic", "IPv4", "IPv6", "Dual"}[f]
}

// Service is a name and its virtual addresses (istio.workload.Service).
type Service struct {
	Name              string
	Namespace         string
	Hostname          string
	VIPs              []NetAddr
	CIDRs             []NetPrefix
	Ports             []Port // Target is the default target port; ascending by service port
	SubjectAltNames   []string
	Waypoint          *Gateway
	WeightedWaypoints []WeightedGateway
	LoadBalancing     *LoadBalancing
	IPFamilies        IPFamilies
	Canonical         bool // the preferred one when several services share the hostname
	IngressWaypoint   bool
	NamespaceOnly     bool // visible to clients of its own namespace only
}

// Key returns the service's name as a key.
func (s *Service) Key() ServiceName { return ServiceName{s.Namespace, s.Hostname} }

// Port returns the service's port with that number.
func (s *Service) Port(number uint16) (Port, bool) {
	for _, p := range s.Ports {
		if p.Service == number {
			return p, true
		}
	}
	return Port{}, false
}
