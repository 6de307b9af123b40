// Package status says how the configuration and the proxies stand: what is wrong
// with which file, what every object came to, and who has accepted what.
//
//	source.Problem      file:line field reason  ─┐
//	compile.Condition   object type field reason ─┼─► Report, JSON on /debug/status
//	xds.Proxy           node types acks nacks   ─┘
//
// A problem is logged once when it appears and once when it is gone.
//
// A Board is safe for concurrent use.
package status

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/culvert-mesh/culvert/controlplane/compile"
	"github.com/culvert-mesh/culvert/controlplane/source"
	"github.com/culvert-mesh/culvert/controlplane/xds"
)

// Report is the answer of /debug/status.
type Report struct {
	Started    time.Time           `json:"started"`
	Updated    time.Time           `json:"updated,omitzero"` // when the configuration last changed
	Objects    int                 `json:"objects"`
	Resources  map[string]int      `json:"resources"`  // by type URL
	Problems   []source.Problem    `json:"problems"`   // with what was written
	Conditions []compile.Condition `json:"conditions"` // of the objects, good and bad
	Proxies    []xds.Proxy         `json:"proxies"`    // connected now
}

// Inputs are what a Board reports on.
type Inputs struct {
	Conditions func() []compile.Condition
	Objects    func() int
	Resources  func() map[string]int
	Proxies    func() []xds.Proxy
	Log        *slog.Logger
}

// Board holds the latest problems and makes reports.
type Board struct {
	in      Inputs
	started time.Time

	mu       sync.Mutex
	updated  time.Time
	problems []source.Problem
	logged   map[string]bool
}

// NewBoard returns a Board without problems.
func NewBoard(in Inputs) *Board {
	if in.Log == nil {
		in.Log = slog.New(slog.DiscardHandler)
	}
	return &Board{in: in, started: time.Now(), logged: map[string]bool{}}
}

// Updated takes the problems of a new state of the source, and logs what is new
// and what is gone, conditions included.
func (b *Board) Updated(problems []source.Problem) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.updated = time.Now()
	b.problems = slices.Clone(problems)
	now := map[string]bool{}
	for _, p := range problems {
		b.noteLocked(now, p.Object, p.File, p.Line, p.Field, string(p.Reason), p.Detail)
	}
	for _, c := range b.in.Conditions() {
		if !c.Status {
			b.noteLocked(now, c.Object, c.File, c.Line, c.Field, string(c.Reason), c.Message)
		}
	}
	for key := range b.logged {
		if !now[key] {
			b.in.Log.Info("configuration problem is gone", "problem", key)
		}
	}
	b.logged = now
}

func (b *Board) noteLocked(now map[string]bool, object, file string, line int, field, reason, detail string) {
	key := object + " " + field + ": " + reason + ": " + detail
	if file != "" && object == "" {
		key = file + ": " + reason + ": " + detail
	}
	now[key] = true
	if !b.logged[key] {
		b.in.Log.Warn("configuration problem", "object", object, "file", file, "line", line, "field", field, "reason", reason, "detail", detail)
	}
}

// Report returns the present state.
func (b *Board) Report() Report {
	r := Report{
		Started: b.started, Objects: b.in.Objects(), Resources: b.in.Resources(),
		Conditions: b.in.Conditions(), Proxies: b.in.Proxies(),
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	r.Updated, r.Problems = b.updated, slices.Clone(b.problems)
	if r.Problems == nil {
		r.Problems = []source.Problem{}
	}
	if r.Conditions == nil {
		r.Conditions = []compile.Condition{}
	}
	return r
}

// ServeHTTP answers with the report as JSON.
func (b *Board) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	_ = e.Encode(b.Report()) // the client is gone; there is nobody to tell
}
