package admission

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/prometheus/client_golang/prometheus"
)

// post asks for a review as whoever is at addr.
func post(s *Server, addr string, body io.Reader) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, Path, body)
	r.RemoteAddr = addr
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w
}

// TestSlowCallers: who does not finish what it asks holds up nobody else.
func TestSlowCallers(t *testing.T) {
	good := review(t, request(t, wrongPolicy))
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{Judge: compileOnly})
		body, slow := io.Pipe()
		ended := make(chan int)
		const callers = 4 * maxReviews
		for i := range callers {
			go func() { ended <- post(s, fmt.Sprintf("10.0.0.1:%d", 1000+i), body).Code }()
		}
		synctest.Wait()
		if w := post(s, "10.0.0.2:1000", bytes.NewReader(good)); w.Code != http.StatusOK {
			t.Errorf("%d %s", w.Code, w.Body)
		}
		slow.Close()
		for range callers {
			if code := <-ended; code != http.StatusBadRequest {
				t.Errorf("what has no end was answered with %d", code)
			}
		}
		if w := post(s, "10.0.0.1:1000", bytes.NewReader(good)); w.Code != http.StatusOK || len(s.readers.by) != 0 {
			t.Errorf("%d %s; %d callers are remembered", w.Code, w.Body, len(s.readers.by))
		}
	})
}

// TestManyResources: what callers make up becomes no metrics of its own.
func TestManyResources(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	s := New(Config{Judge: compileOnly, Metrics: reg})
	for i := range 20 {
		req := request(t, wrongPolicy)
		req.Resource.Group, req.Resource.Version, req.Resource.Resource = fmt.Sprintf("g%d", i), fmt.Sprintf("v%d", i), fmt.Sprintf("r%d", i)
		post(s, "10.0.0.1:1", bytes.NewReader(review(t, req)))
		req.Resource.Group, req.Resource.Resource = "security.istio.io", "authorizationpolicies"
		post(s, "10.0.0.1:1", bytes.NewReader(review(t, req)))
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if n := len(f.GetMetric()); n > 3 { // v1, another version, another resource
			t.Errorf("%s has %d series", f.GetName(), n)
		}
	}
}

// TestLongTexts: an answer repeats no more of an object than people read.
func TestLongTexts(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("ä", 100_000)
	req := request(t, "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\n"+
		"spec: {rules: [{to: [{operation: {ports: ["+long+"]}}]}]}\n")
	answer := Review(compileOnly, req)
	if answer.Allowed || len(answer.Result.Message) > 2*maxText || !strings.Contains(answer.Result.Message, "is not a port") && !strings.HasSuffix(answer.Result.Message, "…") {
		t.Errorf("%v, %d bytes", answer.Allowed, len(answer.Result.Message))
	}
	if strings.ToValidUTF8(answer.Result.Message, "") != answer.Result.Message {
		t.Error("a letter was cut through")
	}
}

// TestReaders: of one address only so many are read at a time.
func TestReaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := readers{by: map[string]*reader{}}
		r := httptest.NewRequest(http.MethodPost, Path, nil)
		for range maxReading {
			if !l.enter(r) {
				t.Fatal("there is a place")
			}
		}
		late, cancel := context.WithCancel(t.Context())
		entered := make(chan bool, 2)
		go func() { entered <- l.enter(r) }()
		go func() { entered <- l.enter(r.WithContext(late)) }()
		synctest.Wait()
		if len(entered) > 0 {
			t.Error("more entered than there are places")
		}
		cancel()
		if <-entered {
			t.Error("who is gone entered")
		}
		l.leave(r)
		if !<-entered {
			t.Error("a place that was left is not taken")
		}
		for range maxReading {
			l.leave(r)
		}
		if len(l.by) > 0 {
			t.Error("an address is remembered")
		}
	})
}
