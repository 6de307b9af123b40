package app

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestReady: an agent whose plugin the runtime does not call is not ready, says why,
// and is ready as soon as that has been mended.
func TestReady(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start()
	var why error
	s := &server{agent: w.agent, metrics: http.NotFoundHandler(), plugin: func() error { return why }}
	ask := func(path string) (int, string) {
		answer := httptest.NewRecorder()
		s.public().ServeHTTP(answer, httptest.NewRequest(http.MethodGet, path, nil))
		return answer.Code, answer.Body.String()
	}
	for _, why = range []error{nil, errors.New("read-only file system"), nil} {
		want := map[bool]int{true: http.StatusOK, false: http.StatusServiceUnavailable}[why == nil]
		code, text := ask("/readyz")
		if code != want || why != nil && !strings.Contains(text, why.Error()) {
			t.Errorf("%v: ready answers %d %s", why, code, text)
		}
		_, text = ask("/status")
		var got Status
		if err := json.Unmarshal([]byte(text), &got); err != nil || (got.Plugin == "") != (why == nil) {
			t.Errorf("%v: status says %q, %v", why, got.Plugin, err)
		}
	}
}
