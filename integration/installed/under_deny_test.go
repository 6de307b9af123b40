//go:build kube

package installed

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/integration/faults"
)

const denial = `{"apiVersion":"security.istio.io/v1","kind":"AuthorizationPolicy","metadata":{"name":%q},
"spec":{"action":"DENY","selector":{"matchLabels":{"app":%q}},"rules":[{"from":[{"source":{"principals":["cluster.local/ns/` + stageNS + `/sa/client"]}}]}]}}`

const policies = "/apis/security.istio.io/v1/namespaces/" + stageNS + "/authorizationpolicies"

// denyLimit is for a policy to take hold, from when the API server has told a watcher
// of it: the control plane cannot know before. It is the median that is held to it:
// where every core is busy many times over, any program waits for its turn at times.
const denyLimit = 50 * time.Millisecond

// change is when policies came and went, since the load began.
type change struct {
	app, steady         time.Duration // the API server had accepted it
	toldApp, toldSteady time.Duration // and told us, who watch
	gone                time.Duration
}

// deny forbids the load by policies that select by label, and times it from the API
// server's answer. The server of the streams is the last to be forbidden.
func deny(s *stage, r *row) {
	var changes []change
	for n := range 5 {
		told := s.watchPolicies(r.began)
		app, steady := fmt.Sprintf("app-%d", n), fmt.Sprintf("steady-%d", n)
		c := change{app: s.forbid(r, app, "app"), steady: s.forbid(r, steady, "steady")}
		time.Sleep(time.Second)
		c.gone = time.Since(r.began)
		for _, name := range []string{app, steady} {
			if err := s.api.do("DELETE", policies+"/"+name, nil, nil); err != nil {
				s.t.Fatal(err)
			}
		}
		at := told()
		c.toldApp, c.toldSteady = max(at[app]-c.app, 0), max(at[steady]-c.steady, 0)
		changes = append(changes, c)
		eventually(s.t, "allowed again", func() error { return ask(s.client, s.steady) })
		time.Sleep(time.Second)
	}
	r.after = func(rep *faults.Report) {
		var refused, ended []time.Duration
		for _, c := range changes {
			first, last := c.judge(r, rep)
			refused, ended = append(refused, max(0, first-c.toldApp)), append(ended, max(0, last-c.toldSteady))
		}
		r.took("first new connection refused, after the API server told of the policy,", median(refused), denyLimit)
		r.took("all streams ended", median(ended), denyLimit)
		r.note("the slowest of %d: %s, %s", len(changes), short(slices.Max(refused)), short(slices.Max(ended)))
	}
}

func median(all []time.Duration) time.Duration {
	slices.Sort(all)
	return all[len(all)/2]
}

// forbid makes a policy, and says when the API server had.
func (s *stage) forbid(r *row, name, app string) time.Duration {
	if err := s.api.do("POST", policies, fmt.Appendf(nil, denial, name, app), nil); err != nil {
		s.t.Fatal(err)
	}
	return time.Since(r.began)
}

// judge compares what the load met with one change. It returns when the first new
// connection was refused and the last stream ended, since the policies were made.
func (c change) judge(r *row, rep *faults.Report) (first, last time.Duration) {
	first, broken := -1, 0
	for _, f := range rep.Failures {
		at := f.At + f.After
		if at < min(c.app, c.steady) || at > c.gone {
			continue
		}
		if f.What == "connection" && first < 0 {
			first = at - c.app
		}
		if f.What == "stream" {
			broken++
			last = max(last, at-c.steady)
		}
	}
	if broken < rep.Streams {
		r.miss("only %d of %d open connections ended", broken, rep.Streams)
	}
	if first < 0 {
		r.miss("no new connection was refused")
	}
	return first, last
}

// watchPolicies watches as the control plane does. The function that it returns ends
// that, and tells when, since began, it was told of each policy.
func (s *stage) watchPolicies(began time.Time) func() map[string]time.Duration {
	s.t.Helper()
	var list struct {
		Metadata struct{ ResourceVersion string }
	}
	if err := s.api.get(policies, &list); err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	stream := s.api.watch(ctx, s.t, policies+"?watch=1&resourceVersion="+list.Metadata.ResourceVersion)
	at := map[string]time.Duration{}
	var done sync.WaitGroup
	done.Go(func() {
		defer stream.Body.Close()
		for lines := json.NewDecoder(stream.Body); ; {
			var event struct {
				Type   string
				Object struct{ Metadata struct{ Name string } }
			}
			if lines.Decode(&event) != nil {
				return
			}
			if event.Type == "ADDED" {
				at[event.Object.Metadata.Name] = time.Since(began)
			}
		}
	})
	return func() map[string]time.Duration {
		cancel()
		done.Wait()
		return at
	}
}

// watch begins to read an answer that does not end before ctx.
func (a *apiServer) watch(ctx context.Context, t *testing.T, path string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, a.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: a.client.Transport}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}
