// Package metrics holds the metric families that several components emit.
package metrics

import (
	"context"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

// NewRegistry returns a registry with the process and Go collectors and
// istio_build{component,tag}.
func NewRegistry(component, tag string) *prometheus.Registry { panic("skeleton") }

// Handler serves the registry in the Prometheus formats.
func Handler(reg *prometheus.Registry) http.Handler { panic("skeleton") }

// Reporter says which side counts.
type Reporter uint8

// Reporters.
const (
	Source Reporter = iota
	Destination
	Waypoint
)

// Flow says who talks to whom; it decides the labels.
type Flow struct {
	Reporter            Reporter
	Source, Destination *mesh.Workload // nil = unknown
	Service             *mesh.Service  // nil = none
	SourceIdentity      mesh.Identity  // of the TLS connection only
	DestinationIdentity mesh.Identity
	MutualTLS           bool // connection_security_policy
}

// TCP is the family of istio_tcp_* metrics.
type TCP struct{}

// TCPConfig configures a TCP family.
type TCPConfig struct {
	// Alive reports whether the workload still exists; nil = nothing expires.
	Alive func(namespace, workload string) bool
	Idle  time.Duration // a departed workload's series live this long after their last use; 0 = 5 min
}

// NewTCP registers the family.
func NewTCP(reg prometheus.Registerer, cfg TCPConfig) *TCP { panic("skeleton") }

// Series resolves the labels of a flow. The result may be kept for the flow.
func (t *TCP) Series(f Flow) *Series { panic("skeleton") }

// Run expires series of departed workloads until ctx ends.
func (t *TCP) Run(ctx context.Context) error { panic("skeleton") }

// SocketOpened and SocketClosed count istio_tcp_sockets_open.
func (t *TCP) SocketOpened(r Reporter) {}
func (t *TCP) SocketClosed(r Reporter) {}

// Series is one label set.
type Series struct{}

// Open counts a connection. request and response are its live byte counters:
// client to server and server to client, whichever side reports. They may be nil.
func (s *Series) Open(request, response *atomic.Uint64) *Conn { panic("skeleton") }

// Failed counts a connection that could not be made.
func (s *Series) Failed(r reason.Reason) {}

// Conn is one counted connection.
type Conn struct{}

// Close counts the end, once; a non-nil err counts as failed too.
func (c *Conn) Close(err error) {}

// Requests is the family of istio_request* metrics of a waypoint or gateway.
type Requests struct{}

// RequestFlow is a flow of requests.
type RequestFlow struct {
	Flow
	Protocol string // http, grpc
}

// NewRequests registers the family.
func NewRequests(reg prometheus.Registerer, cfg TCPConfig) *Requests { panic("skeleton") }

// Series resolves the labels of a flow of requests.
func (r *Requests) Series(f RequestFlow) *RequestSeries { panic("skeleton") }

// Run expires series of departed workloads until ctx ends.
func (r *Requests) Run(ctx context.Context) error { panic("skeleton") }

// RequestSeries is a label set but for the response's labels.
type RequestSeries struct{}

// Response is what one request came to.
type Response struct {
	Code                              int    // response_code
	GRPCStatus                        string // grpc_response_status; "" unless gRPC
	Flags                             string // response_flags; "" = "-"
	Duration                          time.Duration
	RequestBytes                      uint64
	ResponseBytes                     uint64
	RequestMessages, ResponseMessages uint64 // gRPC only
}

// Observe counts one request.
func (s *RequestSeries) Observe(r Response) {}
