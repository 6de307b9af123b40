// Package token makes and checks service-account tokens.
package token

import (
	"context"
	"time"
)

// Claims is what a service-account token says about its bearer.
type Claims struct {
	Namespace      string
	ServiceAccount Ref
	Pod            Ref // zero when the token is not bound to a pod
	Node           Ref // zero when unknown
	Audiences      []string
	Issuer         string
	Expiry         time.Time
}

// Ref is a Kubernetes object's name and UID.
type Ref struct {
	Name string `json:"name"`
	UID  string `json:"uid"`
}

// Account returns "namespace/serviceaccount".
func (c *Claims) Account() string { return c.Namespace + "/" + c.ServiceAccount.Name }

// Issuer makes tokens.
type Issuer struct{}

// NewIssuer opens the keys in dir, or makes one there. The public half is written
// to dir/jwks.json.
func NewIssuer(dir string) (*Issuer, error) { panic("skeleton") }

// Issue returns a signed token with these claims. Empty Audiences means
// istio-ca; a zero Expiry means 12 hours from now.
func (i *Issuer) Issue(c Claims) (string, error) { panic("skeleton") }

// JWKS returns the path of the public keys.
func (i *Issuer) JWKS() string { panic("skeleton") }

// Rotate signs with a new key from now on; the old one stays in the JWKS.
func (i *Issuer) Rotate() error { panic("skeleton") }

// VerifierConfig configures a Verifier.
type VerifierConfig struct {
	JWKS      string   // file, read again when it changes
	Audiences []string // any one is accepted; empty = istio-ca
	Issuer    string   // required issuer; empty = any
}

// Verifier checks tokens.
type Verifier struct{}

// NewVerifier returns a verifier that reads its keys at first use.
func NewVerifier(cfg VerifierConfig) *Verifier { panic("skeleton") }

// Authenticate checks raw and returns its claims.
func (v *Verifier) Authenticate(ctx context.Context, raw string) (*Claims, error) { panic("skeleton") }

// FileSource returns a function that reads the token in the file at every call.
func FileSource(path string) func() (string, error) { panic("skeleton") }
