package apiserver

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"k8s.io/client-go/rest"
)

// TestConfigMap: what is read is what the API server has now, and errors say which
// ConfigMap it is.
func TestConfigMap(t *testing.T) {
	t.Parallel()
	var answer string // "" = there is none
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if r.URL.Path != "/api/v1/namespaces/mesh/configmaps/roots" || answer == "" {
			w.WriteHeader(http.StatusNotFound)
		}
		_, _ = w.Write([]byte(answer))
	}))
	defer api.Close()
	m, err := NewConfigMap(&rest.Config{Host: api.URL}, "mesh", "roots", "root.pem")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ answer, want, err string }{
		{"", "", "read ConfigMap mesh/roots"},
		{`{"kind":"ConfigMap","apiVersion":"v1","data":{"other":"x"}}`, "", "no key root.pem"},
		{`{"kind":"ConfigMap","apiVersion":"v1","data":{"root.pem":"first"}}`, "first", ""},
		{`{"kind":"ConfigMap","apiVersion":"v1","data":{"root.pem":"second"}}`, "second", ""},
	} {
		answer = c.answer
		got, err := m.Read(t.Context())
		if string(got) != c.want || (err != nil) != (c.err != "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("answer %q: read %q, %v", c.answer, got, err)
		}
	}
}
