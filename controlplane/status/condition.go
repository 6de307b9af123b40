package status

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/culvert-mesh/culvert/controlplane/compile"
)

// condition is one entry of status.conditions, in the layout that Kubernetes,
// Istio and the Gateway API share.
type condition struct {
	Type               string     `json:"type"`
	Status             string     `json:"status"` // "True", "False"
	ObservedGeneration generation `json:"observedGeneration,omitempty"`
	LastTransitionTime string     `json:"lastTransitionTime,omitempty"` // RFC 3339
	Reason             string     `json:"reason"`
	Message            string     `json:"message"`
}

// generation is a number that Istio writes as a string, as protobuf's JSON has it.
// It is written as a number: `kubectl wait` understands no other.
type generation int64

// UnmarshalJSON accepts both; what is neither is 0, and thereby not what is wanted.
func (g *generation) UnmarshalJSON(b []byte) error {
	n, _ := strconv.ParseInt(string(bytes.Trim(b, `"`)), 10, 64)
	*g = generation(n)
	return nil
}

const (
	statusTrue  = "True"
	statusFalse = "False"
)

// newCondition returns a condition about the generation that was judged.
func newCondition(kind string, ok bool, why, message string, found []compile.Condition) condition {
	c := condition{Type: kind, Status: statusFalse, Reason: why, Message: clip(message)}
	if ok {
		c.Status = statusTrue
	}
	for _, f := range found {
		c.ObservedGeneration = max(c.ObservedGeneration, generation(f.Generation))
	}
	return c
}

// since sets the time at which a condition became what it is: that of old, when
// old had the same status, else now.
func (c *condition) since(old *condition, now time.Time) {
	c.LastTransitionTime = now.UTC().Format(time.RFC3339)
	if old != nil && old.Status == c.Status && old.LastTransitionTime != "" {
		c.LastTransitionTime = old.LastTransitionTime
	}
}

// merge puts the wanted conditions among those that there are, each in its place.
// Conditions of other types than ours are kept, byte by byte; ours that are not
// wanted are left out.
func merge(have []json.RawMessage, ours []string, want []condition, now time.Time) (out []json.RawMessage, changed bool) {
	out = make([]json.RawMessage, 0, len(have)+len(want))
	for _, raw := range have {
		var old condition
		if json.Unmarshal(raw, &old) != nil || !slices.Contains(ours, old.Type) {
			out = append(out, raw)
			continue
		}
		i := slices.IndexFunc(want, func(c condition) bool { return c.Type == old.Type })
		if i < 0 {
			changed = true
			continue
		}
		next := want[i]
		want = slices.Delete(slices.Clone(want), i, i+1)
		if next.since(&old, now); next == old {
			out = append(out, raw)
			continue
		}
		out, changed = append(out, must(json.Marshal(next))), true
	}
	for _, next := range want {
		next.since(nil, now)
		out, changed = append(out, must(json.Marshal(next))), true
	}
	return out, changed
}

// Limits of a message, which etcd holds and a terminal shows.
const (
	maxFindings = 5
	maxMessage  = 2000
)

// texts is what is wrong, in the words of everybody else who says it.
func texts(found []compile.Condition) string {
	var out []string
	for _, c := range found[:min(len(found), maxFindings)] {
		out = append(out, c.Text())
	}
	if rest := len(found) - maxFindings; rest > 0 {
		out = append(out, fmt.Sprintf("and %d more", rest))
	}
	return clip(strings.Join(out, "; "))
}

// clip keeps a message within its limit, and to letters: what JSON changes would be
// found different, and written, for ever.
func clip(text string) string {
	if len(text) > maxMessage {
		text = strings.ToValidUTF8(text[:maxMessage], "") + "…"
	}
	return strings.ToValidUTF8(text, "\ufffd")
}

// bad returns what is wrong, among the conditions of one type.
func bad(kind string, found []compile.Condition) []compile.Condition {
	return filter(found, func(c compile.Condition) bool { return c.Type == kind && !c.Status })
}

func filter(found []compile.Condition, keep func(compile.Condition) bool) []compile.Condition {
	var out []compile.Condition
	for _, c := range found {
		if keep(c) {
			out = append(out, c)
		}
	}
	return out
}
