package ca

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	authentication "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	client "k8s.io/client-go/kubernetes/typed/authentication/v1"

	"github.com/culvert-mesh/culvert/pkg/token"
)

// Reviewer has bearer tokens reviewed by the API server that issued them. It is an
// Authenticator. It is safe for concurrent use.
type Reviewer struct {
	reviews   client.TokenReviewInterface
	audiences []string
	now       func() time.Time

	mu   sync.Mutex
	good map[[sha256.Size]byte]reviewed
}

// reviewed is an answer that is remembered.
type reviewed struct {
	claims *token.Claims
	until  time.Time
}

const (
	// remember is how long a good answer counts: a proxy asks for the certificates
	// of a whole node at once, and a token that is revoked is so a minute later.
	remember = time.Minute
	// maxRemembered bounds them. Only the mesh's own proxies have good ones.
	maxRemembered = 4096
)

// NewReviewer returns a reviewer of tokens that are meant for one of audiences.
func NewReviewer(reviews client.TokenReviewInterface, audiences []string) *Reviewer {
	return &Reviewer{reviews: reviews, audiences: audiences, now: time.Now, good: map[[sha256.Size]byte]reviewed{}}
}

// Authenticate implements Authenticator.
func (r *Reviewer) Authenticate(ctx context.Context, bearer string) (*token.Claims, error) {
	if bearer == "" {
		return nil, errors.New("no token")
	}
	key := sha256.Sum256([]byte(bearer))
	if c := r.remembered(key); c != nil {
		return c, nil
	}
	review := &authentication.TokenReview{Spec: authentication.TokenReviewSpec{Token: bearer, Audiences: r.audiences}}
	answer, err := r.reviews.Create(ctx, review, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("token review: %w", err)
	}
	c, err := claimsOf(answer.Status, r.audiences)
	if err != nil {
		return nil, fmt.Errorf("token review: %w", err)
	}
	r.keep(key, c)
	return c, nil
}

func (r *Reviewer) remembered(key [sha256.Size]byte) *token.Claims {
	r.mu.Lock()
	defer r.mu.Unlock()
	if g, ok := r.good[key]; ok && r.now().Before(g.until) {
		return g.claims
	}
	return nil
}

func (r *Reviewer) keep(key [sha256.Size]byte, c *token.Claims) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.good) >= maxRemembered {
		clear(r.good)
	}
	r.good[key] = reviewed{c, r.now().Add(remember)}
}

// Extra information that the API server gives about service-account tokens that
// are bound to a pod (KEP-4193; the node's since Kubernetes 1.30).
const (
	extraPodName  = "authentication.kubernetes.io/pod-name"
	extraPodUID   = "authentication.kubernetes.io/pod-uid"
	extraNodeName = "authentication.kubernetes.io/node-name"
	extraNodeUID  = "authentication.kubernetes.io/node-uid"
)

// claimsOf reads a review's answer. A server that knows nothing of audiences
// answers without any: it has not checked them.
func claimsOf(s authentication.TokenReviewStatus, audiences []string) (*token.Claims, error) {
	if !s.Authenticated {
		if s.Error != "" {
			return nil, fmt.Errorf("not accepted: %s", s.Error)
		}
		return nil, errors.New("not accepted")
	}
	if !slices.ContainsFunc(s.Audiences, func(a string) bool { return slices.Contains(audiences, a) }) {
		return nil, fmt.Errorf("the token is for %q, want %q", s.Audiences, audiences)
	}
	parts := strings.Split(s.User.Username, ":")
	if len(parts) != 4 || parts[0] != "system" || parts[1] != "serviceaccount" || parts[2] == "" || parts[3] == "" {
		return nil, fmt.Errorf("%q is no service account", s.User.Username)
	}
	extra := func(name string) string {
		if v := s.User.Extra[name]; len(v) == 1 {
			return v[0]
		}
		return ""
	}
	return &token.Claims{
		Namespace:      parts[2],
		ServiceAccount: token.Ref{Name: parts[3], UID: s.User.UID},
		Pod:            token.Ref{Name: extra(extraPodName), UID: extra(extraPodUID)},
		Node:           token.Ref{Name: extra(extraNodeName), UID: extra(extraNodeUID)},
		Audiences:      s.Audiences,
	}, nil
}
