package ca

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	authentication "k8s.io/api/authentication/v1"
	client "k8s.io/client-go/kubernetes/typed/authentication/v1"
	"k8s.io/client-go/rest"

	"github.com/culvert-mesh/culvert/pkg/token"
)

func TestClaimsOf(t *testing.T) {
	t.Parallel()
	status := func(user, audience string, extra map[string]authentication.ExtraValue) authentication.TokenReviewStatus {
		return authentication.TokenReviewStatus{Authenticated: true, Audiences: []string{audience},
			User: authentication.UserInfo{Username: user, UID: "u1", Extra: extra}}
	}
	bound := map[string]authentication.ExtraValue{
		extraPodName: {"ztunnel-x"}, extraPodUID: {"p1"}, extraNodeName: {"node-1"}, extraNodeUID: {"n1"},
	}
	c, err := claimsOf(status("system:serviceaccount:culvert-system:ztunnel", "istio-ca", bound), []string{"other", "istio-ca"})
	if err != nil {
		t.Fatal(err)
	}
	if c.Account() != "culvert-system/ztunnel" || c.ServiceAccount.UID != "u1" || c.Pod != (token.Ref{Name: "ztunnel-x", UID: "p1"}) || c.Node != (token.Ref{Name: "node-1", UID: "n1"}) {
		t.Errorf("claims %+v", c)
	}
	for what, bad := range map[string]authentication.TokenReviewStatus{
		"not accepted":           {Error: "expired"},
		"of a person":            status("alice", "istio-ca", nil),
		"of a node":              status("system:node:node-1", "istio-ca", nil),
		"for somebody else":      status("system:serviceaccount:a:b", "vault", nil),
		"audiences not checked":  {Authenticated: true, User: authentication.UserInfo{Username: "system:serviceaccount:a:b"}},
		"nameless":               status("system:serviceaccount:a:", "istio-ca", nil),
		"with too many colons":   status("system:serviceaccount:a:b:c", "istio-ca", nil),
		"accepted and an error?": {Authenticated: false, Audiences: []string{"istio-ca"}, User: authentication.UserInfo{Username: "system:serviceaccount:a:b"}},
	} {
		if c, err := claimsOf(bad, []string{"istio-ca"}); err == nil {
			t.Errorf("a token %s is taken for %+v", what, c)
		}
	}
}

// apiServer reviews tokens: "good" is ztunnel's.
func apiServer(t *testing.T, asked *atomic.Int32) *Reviewer {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		var review authentication.TokenReview
		if err := json.NewDecoder(r.Body).Decode(&review); err != nil || r.URL.Path != "/apis/authentication.k8s.io/v1/tokenreviews" {
			http.Error(w, "what?", http.StatusBadRequest)
			return
		}
		if review.Spec.Token == "good" {
			review.Status = authentication.TokenReviewStatus{Authenticated: true, Audiences: review.Spec.Audiences,
				User: authentication.UserInfo{Username: "system:serviceaccount:culvert-system:ztunnel"}}
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(review)
	}))
	t.Cleanup(s.Close)
	c, err := client.NewForConfig(&rest.Config{Host: s.URL, ContentConfig: rest.ContentConfig{ContentType: "application/json"}})
	if err != nil {
		t.Fatal(err)
	}
	return NewReviewer(c.TokenReviews(), []string{"istio-ca"})
}

// A good answer is remembered for a minute, a bad one never, and a server that is
// away lets nobody in whom it does not remember.
func TestReviewer(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	r := apiServer(t, &asked)
	now := time.Now()
	r.now = func() time.Time { return now }
	for range 3 {
		if c, err := r.Authenticate(t.Context(), "good"); err != nil || c.Account() != "culvert-system/ztunnel" {
			t.Fatalf("%+v, %v", c, err)
		}
	}
	if asked.Load() != 1 {
		t.Errorf("asked %d times", asked.Load())
	}
	now = now.Add(remember + time.Second)
	if _, err := r.Authenticate(t.Context(), "good"); err != nil || asked.Load() != 2 {
		t.Errorf("after a minute: %v, asked %d times", err, asked.Load())
	}
	for range 2 {
		if _, err := r.Authenticate(t.Context(), "bad"); err == nil || !strings.Contains(err.Error(), "not accepted") {
			t.Errorf("a bad token: %v", err)
		}
	}
	if asked.Load() != 4 {
		t.Errorf("a bad answer is remembered: asked %d times", asked.Load())
	}
	if _, err := r.Authenticate(t.Context(), ""); err == nil || asked.Load() != 4 {
		t.Errorf("no token: %v", err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Authenticate(gone, "other"); err == nil {
		t.Error("without an answer somebody is let in")
	}
	if _, err := r.Authenticate(gone, "good"); err != nil {
		t.Errorf("who is remembered is not let in while the server is away: %v", err)
	}
}
