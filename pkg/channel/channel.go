// Package channel is how a proxy reaches its control plane, as its environment
// tells, under upstream's names:
//
//	XDS_ADDRESS  XDS_ROOT_CA  ALT_XDS_HOSTNAME  XDS_HEADER_*     for xDS
//	CA_ADDRESS   CA_ROOT_CA   ALT_CA_HOSTNAME   CA_HEADER_*      for certificates
//	AUTH_TOKEN                                                   for both
//
// The values are not changed after they are read; everything is safe for
// concurrent use.
package channel

import (
	"crypto/x509"
	"net/url"
	"os"
	"strings"

	"github.com/culvert-mesh/culvert/pkg/certs"
	"github.com/culvert-mesh/culvert/pkg/environ"
	"github.com/culvert-mesh/culvert/pkg/token"
)

// Where Kubernetes mounts things, and where the control plane is inside a cluster.
const (
	DefaultRoots = "./var/run/secrets/istio/root-cert.pem"
	DefaultToken = "./var/run/secrets/tokens/istio-token"
	InCluster    = "https://istiod.istio-system.svc:15012"
)

// Channel is one way to the control plane.
type Channel struct {
	Address string            // URL with scheme https or http; "" = turned off
	Roots   string            // a file, PEM text, or "SYSTEM"
	AltName string            // accepted in the certificate beside the address's host
	Headers map[string]string // sent with every call
}

// Read reads the channel whose variables begin with prefix, "XDS" or "CA". Without
// an address it is fallback; an address that is set to nothing turns the channel
// off; one without a scheme is https.
func Read(e *environ.Env, prefix, fallback string) Channel {
	return Channel{
		Address: address(e, prefix+"_ADDRESS", fallback),
		Roots:   e.Text(prefix+"_ROOT_CA", DefaultRoots),
		AltName: e.Text("ALT_"+prefix+"_HOSTNAME", ""),
		Headers: e.Prefixed(prefix + "_HEADER_"),
	}
}

func address(e *environ.Env, name, fallback string) string {
	v, set := e.Lookup(name)
	if !set {
		v = fallback
	}
	if v == "" {
		return ""
	}
	if !strings.Contains(v, "://") {
		v = "https://" + v
	}
	u, err := url.Parse(v)
	if err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") {
		e.Failf(name, "%q is no http or https address", v)
	}
	return v
}

// Pool returns the channel's roots as they are now.
func (c Channel) Pool() (*x509.CertPool, error) { return certs.LoadRoots(c.Roots) }

// RootsFile returns the file that the roots are in; false when they are in none.
func (c Channel) RootsFile() (string, bool) { return c.Roots, certs.RootsFile(c.Roots) }

// Token says where the bearer token comes from. The zero one sends none.
type Token struct {
	Literal string
	Path    string
}

// ReadToken reads AUTH_TOKEN: the path of a file if there is one, else the token
// itself. When it is not set and the default file does not exist, none is sent.
func ReadToken(e *environ.Env) Token {
	v, set := e.Lookup("AUTH_TOKEN")
	if !set {
		v = DefaultToken
	}
	if _, err := os.Stat(v); err == nil {
		return Token{Path: v}
	}
	if !set {
		return Token{}
	}
	return Token{Literal: v}
}

// Read returns the token as it is now; "" sends none.
func (t Token) Read() (string, error) {
	if t.Path == "" {
		return t.Literal, nil
	}
	return token.FileSource(t.Path)()
}
