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
	Conditions   func() []compile.Condition
	ConditionsOf func(source.Key) []compile.Condition
	Objects      func() int
	Resources    func() map[string]int
	Proxies      func() []xds.Proxy
	Log          *slog.Logger
}

// Board holds the latest problems and makes reports.
type Board struct {
	in      Inputs
	started time.Time

	mu       sync.Mutex
	updated  time.Time
	problems []source.Problem
	changed  map[source.Key]struct{}        // objects whose conditions may be others than those logged
	logged   map[string]bool                // of the problems
	said     map[source.Key]map[string]bool // of the conditions, by object; most have none
}

// NewBoard returns a Board without problems.
func NewBoard(in Inputs) *Board {
	if in.Log == nil {
		in.Log = slog.New(slog.DiscardHandler)
	}
	return &Board{in: in, started: time.Now(), changed: map[source.Key]struct{}{}, said: map[source.Key]map[string]bool{}}
}

// Changed tells that there may be something else to say about objects. It is said at
// the next Updated.
func (b *Board) Changed(keys []source.Key) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, key := range keys {
		b.changed[key] = struct{}{}
	}
}

// Updated takes the problems of a new state of the source, and logs what is new
// and what is gone, with the conditions of what has changed.
func (b *Board) Updated(problems []source.Problem) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.updated = time.Now()
	b.problems = slices.Clone(problems)
	var now map[string]bool
	for _, p := range problems {
		now = b.note(b.logged, now, p.Object, p.File, p.Line, p.Field, string(p.Reason), p.Detail)
	}
	b.gone(b.logged, now)
	b.logged = now
	for key := range b.changed {
		b.sayLocked(key)
	}
	clear(b.changed)
}

// sayLocked logs what is new and what is gone of what there is to say about an object.
func (b *Board) sayLocked(key source.Key) {
	before := b.said[key]
	var now map[string]bool
	for _, c := range b.in.ConditionsOf(key) {
		if !c.Status {
			now = b.note(before, now, c.Object, c.File, c.Line, c.Field, string(c.Reason), c.Message)
		}
	}
	b.gone(before, now)
	if now == nil {
		delete(b.said, key)
	} else {
		b.said[key] = now
	}
}

// note adds a problem to now, and logs it unless it was there before.
func (b *Board) note(before, now map[string]bool, object, file string, line int, field, reason, detail string) map[string]bool {
	key := object + " " + field + ": " + reason + ": " + detail
	if file != "" && object == "" {
		key = file + ": " + reason + ": " + detail
	}
	if !before[key] && !now[key] {
		b.in.Log.Warn("configuration problem", "object", object, "file", file, "line", line, "field", field, "reason", reason, "detail", detail)
	}
	if now == nil {
		now = map[string]bool{}
	}
	now[key] = true
	return now
}

// gone logs what was there before and is not now.
func (b *Board) gone(before, now map[string]bool) {
	for key := range before {
		if !now[key] {
			b.in.Log.Info("configuration problem is gone", "problem", key)
		}
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
