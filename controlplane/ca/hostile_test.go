package ca

import (
	"crypto/sha256"
	"encoding/binary"
	"testing"

	authentication "k8s.io/api/authentication/v1"

	"github.com/culvert-mesh/culvert/pkg/token"
)

// TestNoServiceAccount: users of other kinds are no service accounts, however their
// names are divided.
func TestNoServiceAccount(t *testing.T) {
	t.Parallel()
	for name, ok := range map[string]bool{
		"system:serviceaccount:culvert-system:ztunnel": true,
		"system:node:culvert-system:ztunnel":           false,
		"oidc:serviceaccount:culvert-system:ztunnel":   false,
		"system:serviceaccount:culvert-system:":        false,
		"system:serviceaccount::ztunnel":               false,
		"system:serviceaccount:a:b:c":                  false,
		"system:serviceaccount:a":                      false,
		"":                                             false,
	} {
		s := authentication.TokenReviewStatus{Authenticated: true, Audiences: []string{"istio-ca"}, User: authentication.UserInfo{Username: name}}
		if _, err := claimsOf(s, []string{"istio-ca"}); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// TestRememberedIsBounded: tokens are not remembered without limit.
func TestRememberedIsBounded(t *testing.T) {
	t.Parallel()
	r := NewReviewer(nil, nil)
	for i := range uint64(2*maxRemembered + 10) {
		r.keep(sha256.Sum256(binary.BigEndian.AppendUint64(nil, i)), &token.Claims{})
	}
	if n := len(r.good); n == 0 || n > maxRemembered {
		t.Errorf("%d are remembered", n)
	}
}
