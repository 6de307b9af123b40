package admission

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	admissionv1 "k8s.io/api/admission/v1"

	"github.com/culvert-mesh/culvert/pkg/certs/selfsigned"
)

// start runs a Server and returns its URL and a client that trusts it, as the
// API server would: by the service's name.
func start(t *testing.T, reg prometheus.Registerer) (url string, client *http.Client) {
	t.Helper()
	authority, err := selfsigned.NewAuthority(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	const name = "culvert-controlplane.culvert-system.svc"
	cert, err := authority.ServerCertificate([]string{name}, []netip.Addr{}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	s := New(Config{Listen: "127.0.0.1:0", Judge: compileOnly, Metrics: reg,
		Certificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return cert, nil }})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	addr, err := s.Addr(ctx)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: authority.Roots(), ServerName: name}, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	return "https://" + addr.String(), &http.Client{Transport: transport}
}

func review(t *testing.T, req *admissionv1.AdmissionRequest) []byte {
	t.Helper()
	r := admissionv1.AdmissionReview{Request: req}
	r.APIVersion, r.Kind = "admission.k8s.io/v1", "AdmissionReview"
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestServer(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	url, client := start(t, reg)
	req := request(t, wrongPolicy)
	req.Resource.Group, req.Resource.Version, req.Resource.Resource = "security.istio.io", "v1", "authorizationpolicies"
	trial := *req
	trial.Name = trialName
	good := request(t, "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\nspec: {}\n")
	good.Resource = req.Resource
	for _, c := range []struct {
		req     *admissionv1.AdmissionRequest
		allowed bool
	}{{req, false}, {&trial, false}, {good, true}} {
		answer, err := client.Post(url+Path, "application/json", bytes.NewReader(review(t, c.req)))
		if err != nil {
			t.Fatal(err)
		}
		var got admissionv1.AdmissionReview
		err = json.NewDecoder(answer.Body).Decode(&got)
		answer.Body.Close()
		if err != nil || answer.StatusCode != http.StatusOK || got.Response == nil {
			t.Fatalf("%d %v %+v", answer.StatusCode, err, got)
		}
		if got.Kind != "AdmissionReview" || got.APIVersion != "admission.k8s.io/v1" || got.Response.UID != "u" || got.Response.Allowed != c.allowed {
			t.Errorf("got %+v", got.Response)
		}
		if !c.allowed && !strings.Contains(got.Response.Result.Message, "70000 is not a port") {
			t.Errorf("message %q", got.Response.Result.Message)
		}
	}
	scrape := httptest.NewRecorder()
	promhttp.HandlerFor(reg, promhttp.HandlerOpts{}).ServeHTTP(scrape, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for _, want := range []string{ // the trial is not counted
		`galley_validation_failed{group="security.istio.io",reason="invalid_resource",resource="authorizationpolicies",version="v1"} 1`,
		`galley_validation_passed{group="security.istio.io",resource="authorizationpolicies",version="v1"} 1`,
	} {
		if !strings.Contains(scrape.Body.String(), want+"\n") {
			t.Errorf("no %s in\n%s", want, scrape.Body)
		}
	}
}

// TestNoReview: what is no review gets an HTTP status that says why.
func TestNoReview(t *testing.T) {
	t.Parallel()
	url, client := start(t, prometheus.NewRegistry())
	good := review(t, request(t, wrongPolicy))
	for _, c := range []struct {
		name, method, path, contentType string
		body                            io.Reader
		want                            int
	}{
		{"elsewhere", "POST", "/", "application/json", bytes.NewReader(good), 404},
		{"get", "GET", Path, "application/json", nil, 405},
		{"form", "POST", Path, "application/x-www-form-urlencoded", bytes.NewReader(good), 415},
		{"no JSON", "POST", Path, "application/json", strings.NewReader("{"), 400},
		{"no request", "POST", Path, "application/json; charset=utf-8", strings.NewReader(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}`), 400},
		{"another version", "POST", Path, "application/json", bytes.NewReader(bytes.Replace(good, []byte("admission.k8s.io/v1"), []byte("admission.k8s.io/v9"), 1)), 400},
		{"too large", "POST", Path, "application/json", io.MultiReader(strings.NewReader(`{"kind":"`), strings.NewReader(strings.Repeat("x", maxBody))), 413},
	} {
		r, err := http.NewRequestWithContext(t.Context(), c.method, url+c.path, c.body)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", c.contentType)
		answer, err := client.Do(r)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		answer.Body.Close()
		if answer.StatusCode != c.want {
			t.Errorf("%s: %d, want %d", c.name, answer.StatusCode, c.want)
		}
	}
}

// FuzzReview: whatever is posted is answered, and what is a review by its own uid.
func FuzzReview(f *testing.F) {
	for _, kind := range []string{"AuthorizationPolicy", "PeerAuthentication", "HTTPRoute", "Gateway", "ServiceEntry", "WorkloadEntry", "Service"} {
		for _, group := range []string{"security.istio.io", "gateway.networking.k8s.io", "networking.istio.io", ""} {
			f.Add([]byte(fmt.Sprintf(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"1","operation":"UPDATE","kind":{"group":%q,"kind":%q},`+
				`"object":{"metadata":{"name":"a"},"spec":{"rules":[{"to":[{"operation":{"ports":["0"]}}],"matches":[{"path":{"type":"RegularExpression","value":"("}}]}],"hosts":["*"]}},"oldObject":{}}}`, group, kind)))
		}
	}
	s := New(Config{Judge: compileOnly})
	f.Fuzz(func(t *testing.T, body []byte) {
		r := httptest.NewRequest(http.MethodPost, Path, bytes.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		var asked, got admissionv1.AdmissionReview
		if w.Code != http.StatusOK {
			return
		}
		if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || got.Response == nil {
			t.Fatalf("%v: %s", err, w.Body)
		}
		if json.NewDecoder(bytes.NewReader(body)).Decode(&asked) == nil && strings.ToValidUTF8(string(asked.Request.UID), "\ufffd") != string(got.Response.UID) {
			t.Fatalf("asked %q, answered %q", asked.Request.UID, got.Response.UID)
		}
	})
}
