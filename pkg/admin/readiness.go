package admin

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
)

// Readiness is a set of gates that must all be open.
type Readiness struct {
	mu      sync.Mutex
	pending map[*gate]struct{}
	note    func() string // nil = none
}

// gate is told apart by its address: two gates may share a name.
type gate struct{ name string }

// NewReadiness returns a readiness without gates: ready.
func NewReadiness() *Readiness { return &Readiness{pending: map[*gate]struct{}{}} }

// Gate adds a closed gate. done opens it and block closes it again, any number of
// times.
func (r *Readiness) Gate(name string) (done, block func()) {
	g := &gate{name}
	done = func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.pending, g)
	}
	block = func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.pending[g] = struct{}{}
	}
	block()
	return done, block
}

// Pending returns the names of the closed gates, sorted.
func (r *Readiness) Pending() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	names := make([]string, 0, len(r.pending))
	for g := range maps.Keys(r.pending) {
		names = append(names, g.name)
	}
	slices.Sort(names)
	return names
}

// SetNote has a line added to the answer of who is ready, while note returns one.
// note may be called from any goroutine.
func (r *Readiness) SetNote(note func() string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.note = note
}

func (r *Readiness) about() string {
	r.mu.Lock()
	note := r.note
	r.mu.Unlock()
	if note == nil {
		return ""
	}
	return note()
}

// ServeHTTP answers 200 "ready" or 500 "not ready, pending: a, b".
func (r *Readiness) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	pending := r.Pending()
	if len(pending) == 0 {
		fmt.Fprint(w, "ready\n")
		if note := r.about(); note != "" {
			fmt.Fprintln(w, note)
		}
		return
	}
	w.WriteHeader(http.StatusInternalServerError)
	fmt.Fprintf(w, "not ready, pending: %s\n", strings.Join(pending, ", "))
}
