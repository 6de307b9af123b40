// Package filter is the chain that a request passes on its way down to the
// router, and its response on the way up.
//
//	Request   f1 ▶ f2 ▶ f3 ▶ router      a filter may answer instead of going on
//	Response  f1 ◀ f2 ◀ f3 ◀ router      the filters that saw the request see the response
//
// A filter is built once per configuration and shared by all requests: what it
// needs to remember of one request it keeps in the Exchange.
package filter

import (
	"net/netip"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
	"github.com/culvert-mesh/culvert/waypoint/http"
)

// Exchange is what a filter may know beside the message: who called, and whom.
type Exchange struct {
	Source      netip.AddrPort // the client, as it connected
	Identity    mesh.Identity  // from the client's certificate; zero without one
	Destination netip.AddrPort // the address that the client dialled
	URI         []byte         // Identity as a SPIFFE URI; nil until somebody asks

	// Denied names the policy by which a filter refused, for the log.
	Denied string
	// Shadow names policies that would have refused but are only tried out.
	Shadow []string
}

// PeerURI returns the client's SPIFFE URI, empty without an identity.
func (x *Exchange) PeerURI() []byte {
	if x.URI == nil {
		x.URI = []byte(x.Identity.String())
	}
	return x.URI
}

// Reply is a filter's own answer.
type Reply struct {
	Status int
	Body   string
	Reason reason.Reason
}

// Filter is one stage. Both methods may change the message's header.
type Filter interface {
	Name() string
	// Request returns nil to go on, or the answer.
	Request(x *Exchange, req *http.Request) *Reply
	// Response sees the response's head before it is sent.
	Response(x *Exchange, resp *http.Response)
}

// Chain is filters in the order in which requests pass them.
type Chain []Filter

// Request sends req down. passed is how many filters saw it.
func (c Chain) Request(x *Exchange, req *http.Request) (reply *Reply, passed int) {
	for i, f := range c {
		if r := f.Request(x, req); r != nil {
			return r, i + 1
		}
	}
	return nil, len(c)
}

// Response sends resp up through the filters that saw the request.
func (c Chain) Response(x *Exchange, resp *http.Response, passed int) {
	for i := passed - 1; i >= 0; i-- {
		c[i].Response(x, resp)
	}
}

// NetworkFilter decides about a whole connection.
type NetworkFilter interface {
	Name() string
	// Connection returns nil to let the connection pass, or why not.
	Connection(x *Exchange) error
}

// Network is network filters in order.
type Network []NetworkFilter

// Connection asks each filter in turn.
func (n Network) Connection(x *Exchange) error {
	for _, f := range n {
		if err := f.Connection(x); err != nil {
			return err
		}
	}
	return nil
}
