package app

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	goruntime "runtime"
	"testing"
)

// TestSocketMode: who may change pods is root alone, from the first moment on.
func TestSocketMode(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "agent.sock")
	s := &server{agent: &Agent{cfg: Config{Socket: path}}, metrics: http.NotFoundHandler()}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.runUnix(ctx) }()
	for {
		st, err := os.Stat(path)
		if err == nil {
			if st.Mode().Perm() != 0o600 {
				t.Errorf("mode %v", st.Mode())
			}
			break
		}
		if len(ended) > 0 {
			t.Fatal(<-ended)
		}
		goruntime.Gosched()
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
