package admission

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	registrationv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/rest"
)

// TestKeeper follows a webhook through its life: not reached, reached, reset by an
// upgrade of the chart, not reached any more, with new roots.
func TestKeeper(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset().AdmissionregistrationV1().ValidatingWebhookConfigurations()
		var reached atomic.Bool
		var roots atomic.Value
		roots.Store("first")
		k := NewKeeper(KeeperConfig{Configurations: client, Roots: func() []byte { return []byte(roots.Load().(string)) },
			Trial: func(context.Context) error {
				if reached.Load() {
					return nil
				}
				return errors.New("not reached")
			}})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- k.Run(ctx) }()
		synctest.Wait() // there is no configuration yet

		w := registrationv1.ValidatingWebhook{Name: "validation.culvert-mesh.github.io"}
		if _, err := client.Create(ctx, &registrationv1.ValidatingWebhookConfiguration{
			ObjectMeta: metav1.ObjectMeta{Name: Configuration, ResourceVersion: "1"}, Webhooks: []registrationv1.ValidatingWebhook{w, w}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		want := func(step, bundle string, policy registrationv1.FailurePolicyType) {
			t.Helper()
			got, err := client.Get(ctx, Configuration, metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			for i, w := range got.Webhooks {
				if string(w.ClientConfig.CABundle) != bundle || w.FailurePolicy == nil || *w.FailurePolicy != policy || len(w.Rules) != len(rules) {
					t.Errorf("%s: webhook %d has %q, %v and %d rules, want %q and %s", step, i, w.ClientConfig.CABundle, w.FailurePolicy, len(w.Rules), bundle, policy)
				}
			}
		}
		pass(maxRetry)
		want("not reached", "first", registrationv1.Ignore)
		reached.Store(true)
		pass(maxRetry)
		want("reached", "first", registrationv1.Fail)

		ignore := registrationv1.Ignore
		got, _ := client.Get(ctx, Configuration, metav1.GetOptions{})
		got.Webhooks[0].FailurePolicy, got.Webhooks[1].ClientConfig.CABundle, got.Webhooks[1].Rules = &ignore, nil, rules[:1]
		got.ResourceVersion = "2"
		if _, err := client.Update(ctx, got, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		want("upgraded", "first", registrationv1.Fail)

		roots.Store("second")
		pass(checkEvery)
		want("new roots", "second", registrationv1.Fail)
		reached.Store(false)
		pass(checkEvery)
		want("not reached any more", "second", registrationv1.Ignore)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// TestCorrections: what is right is not written.
func TestCorrections(t *testing.T) {
	t.Parallel()
	fail := registrationv1.Fail
	have := &registrationv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{ResourceVersion: "7"},
		Webhooks: []registrationv1.ValidatingWebhook{{FailurePolicy: &fail, Rules: rules, ClientConfig: registrationv1.WebhookClientConfig{CABundle: []byte("roots")}}}}
	if got := corrections(have, []byte("roots"), registrationv1.Fail); got != nil {
		t.Errorf("wrote %s", got)
	}
	if got := corrections(have, []byte("roots"), ""); got != nil {
		t.Errorf("wrote %s", got)
	}
	const want = `[{"op":"test","path":"/metadata/resourceVersion","value":"7"},{"op":"add","path":"/webhooks/0/failurePolicy","value":"Ignore"}]`
	if got := string(corrections(have, []byte("roots"), registrationv1.Ignore)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}

	have.Webhooks[0].Rules = nil // as the chart makes it: the trial must not block anybody
	if got := string(corrections(have, []byte("roots"), "")); !strings.Contains(got, `"/webhooks/0/rules"`) || !strings.Contains(got, `"/webhooks/0/failurePolicy","value":"Ignore"`) {
		t.Errorf("what was asked nothing is given %s", got)
	}
}

// TestTrial: only a refusal by the webhook shows that it is reached.
func TestTrial(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		status  metav1.Status
		reached bool
	}{
		"refused":       {metav1.Status{Status: "Failure", Code: 422, Reason: metav1.StatusReasonInvalid, Message: `admission webhook "x" denied the request: spec: invalid value: 70000 is not a port`}, true},
		"accepted":      {metav1.Status{Status: "Success", Code: 201}, false},
		"not permitted": {metav1.Status{Status: "Failure", Code: 403, Reason: metav1.StatusReasonForbidden, Message: "no 70000"}, false},
		"not reached":   {metav1.Status{Status: "Failure", Code: 500, Reason: metav1.StatusReasonInternalError, Message: "failed calling webhook"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Query().Get("dryRun") != "All" || !strings.HasSuffix(r.URL.Path, "/namespaces/mesh/authorizationpolicies") {
					t.Errorf("asked %s", r.URL)
				}
				c.status.APIVersion, c.status.Kind = "v1", "Status"
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(int(c.status.Code))
				_ = json.NewEncoder(w).Encode(c.status)
			}))
			defer api.Close()
			trial, err := Trial(&rest.Config{Host: api.URL}, "mesh")
			if err != nil {
				t.Fatal(err)
			}
			if err := trial(t.Context()); (err == nil) != c.reached {
				t.Errorf("reached %v: %v", c.reached, err)
			}
		})
	}
}

// pass lets time pass, and what is due then be done.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}
