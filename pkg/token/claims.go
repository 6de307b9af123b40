// Package token makes and checks service-account tokens: signed JWTs with the
// claims of Kubernetes' projected tokens.
//
//	{"iss":"https://kubernetes.default.svc.cluster.local","aud":["istio-ca"],"exp":…,
//	 "sub":"system:serviceaccount:shop:cart",
//	 "kubernetes.io":{"namespace":"shop","serviceaccount":{"name":"cart","uid":"…"},
//	                  "pod":{"name":"cart-7c9f","uid":"…"},"node":{"name":"node-1","uid":"…"}}}
//
//	Issuer    dir/keys.json (private, 0600) ─▶ ES256 tokens, dir/jwks.json (public)
//	Verifier  jwks.json, read again when it changes ─▶ Claims or a clear error
//
// Everything is safe for concurrent use.
package token

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4/jwt"
)

// Defaults of tokens.
const (
	DefaultAudience = "istio-ca"
	DefaultIssuer   = "https://kubernetes.default.svc.cluster.local"
	DefaultTTL      = 12 * time.Hour
)

const subjectPrefix = "system:serviceaccount:"

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
	UID  string `json:"uid,omitempty"`
}

// Account returns "namespace/serviceaccount".
func (c *Claims) Account() string { return c.Namespace + "/" + c.ServiceAccount.Name }

// private is the part of a token that JWT does not define.
type private struct {
	Kubernetes kubernetes `json:"kubernetes.io"`
}

type kubernetes struct {
	Namespace      string `json:"namespace"`
	ServiceAccount Ref    `json:"serviceaccount"`
	Pod            *Ref   `json:"pod,omitempty"`
	Node           *Ref   `json:"node,omitempty"`
}

// encode splits c into the two halves of a token's payload.
func (c *Claims) encode(now time.Time) (jwt.Claims, private) {
	std := jwt.Claims{
		Issuer:    c.Issuer,
		Subject:   subjectPrefix + c.Namespace + ":" + c.ServiceAccount.Name,
		Audience:  c.Audiences,
		Expiry:    jwt.NewNumericDate(c.Expiry),
		NotBefore: jwt.NewNumericDate(now),
		IssuedAt:  jwt.NewNumericDate(now),
	}
	k := kubernetes{Namespace: c.Namespace, ServiceAccount: c.ServiceAccount}
	if c.Pod != (Ref{}) {
		k.Pod = &c.Pod
	}
	if c.Node != (Ref{}) {
		k.Node = &c.Node
	}
	return std, private{k}
}

// decode joins the two halves and checks that they agree.
func decode(std jwt.Claims, p private) (*Claims, error) {
	ns, sa, ok := strings.Cut(strings.TrimPrefix(std.Subject, subjectPrefix), ":")
	if !ok || !strings.HasPrefix(std.Subject, subjectPrefix) || ns == "" || sa == "" || strings.Contains(sa, ":") {
		return nil, fmt.Errorf("subject %q is no service account", std.Subject)
	}
	k := p.Kubernetes
	if k.Namespace != "" && (k.Namespace != ns || k.ServiceAccount.Name != sa) {
		return nil, fmt.Errorf("subject %q contradicts the kubernetes.io claim %s/%s", std.Subject, k.Namespace, k.ServiceAccount.Name)
	}
	c := &Claims{
		Namespace:      ns,
		ServiceAccount: Ref{sa, k.ServiceAccount.UID},
		Audiences:      std.Audience,
		Issuer:         std.Issuer,
		Expiry:         std.Expiry.Time(),
	}
	if k.Pod != nil {
		c.Pod = *k.Pod
	}
	if k.Node != nil {
		c.Node = *k.Node
	}
	return c, nil
}

// FileSource returns a function that reads the token in the file at every call, so
// that a token renewed in place is used at once.
func FileSource(path string) func() (string, error) {
	return func() (string, error) {
		text, err := os.ReadFile(path)
		if err != nil {
			return "", fmt.Errorf("read token: %w", err)
		}
		raw := strings.TrimSpace(string(text))
		if raw == "" {
			return "", errors.New("read token: " + path + " is empty")
		}
		return raw, nil
	}
}
