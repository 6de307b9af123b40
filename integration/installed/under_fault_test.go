//go:build kube

package installed

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/integration/faults"
)

var (
	faultTable = flag.String("faults-table", "", "do every fault, not only the short ones, and write what they cost to this file")
	faultAway  = flag.Duration("faults-away", 10*time.Second, "how long what is away stays away")
	faultRate  = flag.Int("faults-rate", 200, "new connections per second")
)

// fault is a row of the table.
type fault struct {
	name           string
	upstream, ours string
	short          bool // also done by make test-kube
	breaks         bool // streams go through what is killed
	dies           bool // a pod of the application's ends, at once: what it was answering is cut
	clear          bool // pods are outside the mesh for a while
	expected       bool // connections are meant to fail: what counts is in the notes
	streamRate     int  // messages per second on each stream, when not the load's own
	do             func(s *stage, r *row)
}

// row is what became of a fault.
type row struct {
	fault
	began  time.Time // of the load
	report *faults.Report
	notes  []string                    // what was measured beside the load
	missed []string                    // what is not as it should be
	late   []string                    // what took longer than it should
	after  func(report *faults.Report) // looks at the load's report

	stopped func() // the load has ended
	ended   func() // and the old ztunnels
}

// note says what was measured, and missed that it is more than it may be.
func (r *row) note(format string, args ...any) {
	r.notes = append(r.notes, fmt.Sprintf(format, args...))
}
func (r *row) miss(format string, args ...any) {
	r.missed = append(r.missed, fmt.Sprintf(format, args...))
}

// took notes a duration, and misses it beyond a limit.
func (r *row) took(what string, d, limit time.Duration) {
	r.note("%s %s", what, short(d))
	if limit > 0 && d > limit {
		r.late = append(r.late, fmt.Sprintf("%s %s, more than %s", what, short(d), short(limit)))
	}
}

func short(d time.Duration) string {
	if d < time.Second {
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

// TestFaults breaks the mesh under load, one thing after another, and accounts for
// every connection. What a row should reach and does not is told in the table. What
// fails the test is what must never be: a pod that sticks, plaintext on the wire
// between the nodes, a load that does not go on by itself afterwards. Without
// -faults-table only rows are done that are short and the same every time, and those
// have to reach what they should.
func TestFaults(t *testing.T) {
	s := setTheStage(t, *faultAway)
	var rows []*row
	for _, f := range allFaults {
		if *faultTable == "" && !f.short {
			continue
		}
		t.Run(f.name, func(t *testing.T) {
			r := &row{fault: f}
			rows = append(rows, r)
			s.t = t
			defer func() {
				if t.Failed() {
					r.miss("it failed: see the log")
				}
			}()
			s.perform(r)
			t.Log(r.line())
			if *faultTable == "" && len(r.missed) > 0 && r.report.P99 < overwhelmed {
				t.Errorf("missed: %s", strings.Join(r.missed, "; "))
			}
		})
	}
	s.t = t
	table := writeTable(rows, *faultAway)
	t.Logf("\n%s", table)
	if *faultTable != "" {
		if err := os.WriteFile(*faultTable, []byte(table), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// perform does one fault under load, with the wire between the nodes read along.
func (s *stage) perform(r *row) {
	t := s.t
	read := wire(s.t, func() {
		var running *faults.Running
		eventually(t, "the load", func() (err error) {
			running, err = s.load(r.streamRate).Start(t.Context())
			return err
		})
		r.began = time.Now()
		time.Sleep(time.Second)
		defer func() {
			time.Sleep(time.Second)
			r.report = running.Stop()
			if r.stopped != nil {
				r.stopped()
			}
		}()
		r.do(s, r)
	})
	s.judge(r)
	plain := read.Contains(spoken)
	switch {
	case r.clear && plain == 0:
		t.Error("nothing was read while the pods were outside the mesh: the capture is blind")
	case !r.clear && plain > 0:
		t.Errorf("plaintext: messages were read in %d streams between the nodes", plain)
	}
	if read.Seen().Packets == 0 {
		t.Error("nothing was captured")
	}
	for _, what := range []string{"deployment/app", "deployment/steady"} {
		must(t, "rollout", "status", "-n", stageNS, what, "--timeout=90s")
	}
	eventually(t, "the mesh is whole after "+r.name, func() error {
		return errors.Join(ask(s.client, s.app), ask(s.client, s.steady))
	})
	s.awaitOldProxies()
	if r.ended != nil {
		r.ended()
	}
}

// What is forgiven, as in integration/faults: connections whose answer was on its way
// through the process that was killed. When p99 is beyond overwhelmed the machine is
// too busy to say anything about the mesh.
const (
	maxCut      = 5
	overwhelmed = time.Second
)

// underWay is how many connections there are at a moment: as many as begin while the
// slow ones take their time.
func underWay(rep *faults.Report) int {
	return max(maxCut, int(rep.P99.Seconds()*float64(*faultRate)))
}

// judge compares a load's report with what may be lost.
func (s *stage) judge(r *row) {
	rep := r.report
	if rep.Connections == 0 || rep.Messages == 0 {
		s.t.Errorf("there was no load: %d connections, %d messages", rep.Connections, rep.Messages)
	}
	if r.after != nil {
		r.after(rep)
	}
	if r.expected {
		return
	}
	cut := 0
	if r.breaks || r.dies {
		if cut = min(rep.Cut(time.Second), underWay(rep)); cut > 0 {
			r.note("%d connections were in flight through what was killed", cut)
		}
	}
	if rep.Failed > cut {
		r.miss("%d new connections failed, at %s", rep.Failed-cut, rep.Span())
	}
	if rep.Broken > 0 && !r.breaks {
		r.miss("%d streams broke", rep.Broken)
	}
}

// awaitOldProxies waits until ztunnels that were replaced, and live on for their
// connections, have ended.
func (s *stage) awaitOldProxies() {
	s.await("each node has one ztunnel", func() bool {
		pods := s.podsOf(system, "app=ztunnel")
		return len(pods) == 2 && pods[0].ready() && pods[1].ready()
	})
}

// line is the row for a person who watches.
func (r *row) line() string {
	rep := r.report
	return fmt.Sprintf("%d of %d new connections failed, %d streams broke (%s) p50 %v p99 %v slowest %v, longest wait of a stream %v · %s · missed: %s",
		rep.Failed, rep.Connections, rep.Broken, rep.Reasons(), rep.P50, rep.P99, rep.Slowest, rep.LongestWait,
		strings.Join(r.notes, "; "), strings.Join(append(slices.Clip(r.missed), r.late...), "; "))
}
