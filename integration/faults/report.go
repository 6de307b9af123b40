package faults

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

// Reason is why a connection failed, as its program sees it.
type Reason string

// Reasons of failures.
const (
	Refused     Reason = "refused"     // nobody listened
	Reset       Reason = "reset"       // the connection was reset
	Closed      Reason = "closed"      // it ended in good order before the answer
	Hang        Reason = "hang"        // nothing came in time
	Unreachable Reason = "unreachable" // no way there
	Wrong       Reason = "wrong"       // the answer was another's
	Other       Reason = "other"
)

// classify gives an error of a connection its reason.
func classify(err error) Reason {
	switch {
	case errors.Is(err, errWrongEcho):
		return Wrong
	case errors.Is(err, syscall.ECONNREFUSED):
		return Refused
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNABORTED):
		return Reset
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		return Hang
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return Closed
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return Unreachable
	}
	return Other
}

// Failure is one new connection that got no answer, or one stream that broke.
type Failure struct {
	At     time.Duration `json:"at_ns"`    // since the load began
	After  time.Duration `json:"after_ns"` // from its start to its failure
	What   string        `json:"what"`     // "connection" or "stream"
	Step   string        `json:"step"`     // "connect", "send" or "answer"
	Reason Reason        `json:"reason"`
	Detail string        `json:"detail"`
}

// Report is what became of a load. Times are nanoseconds in JSON.
type Report struct {
	Event       string        `json:"event"` // what was done to the mesh meanwhile
	Lasted      time.Duration `json:"lasted_ns"`
	Connections int           `json:"connections"` // new ones
	Failed      int           `json:"failed"`      // of these
	P50         time.Duration `json:"p50_ns"`      // of a new connection with its answer
	P99         time.Duration `json:"p99_ns"`
	Slowest     time.Duration `json:"slowest_ns"`
	Streams     int           `json:"streams"`
	Broken      int           `json:"broken"`          // streams that broke, each time counted
	Messages    int           `json:"messages"`        // on streams
	LongestWait time.Duration `json:"longest_wait_ns"` // for an answer on a stream
	Failures    []Failure     `json:"failures,omitempty"`
}

func (r *Report) measure(took []time.Duration) {
	if len(took) == 0 {
		return
	}
	slices.Sort(took)
	r.P50, r.P99, r.Slowest = took[len(took)/2], took[len(took)*99/100], took[len(took)-1]
}

// Cut counts the new connections that ended, within so long, with what they went
// through: it had answered, and went before the program's answer came.
func (r *Report) Cut(within time.Duration) (n int) {
	for _, f := range r.Failures {
		if f.What == "connection" && f.Step == "answer" && (f.Reason == Reset || f.Reason == Closed) && f.After < within {
			n++
		}
	}
	return n
}

// Reasons counts the failures: "3 connection answer reset".
func (r *Report) Reasons() string {
	count := map[string]int{}
	for _, f := range r.Failures {
		count[fmt.Sprintf("%s %s %s", f.What, f.Step, f.Reason)]++
	}
	var list []string
	for what, n := range count {
		list = append(list, fmt.Sprintf("%d %s", n, what))
	}
	slices.Sort(list)
	return strings.Join(list, ", ")
}

// Span says when the failures happened: "2.104s–2.380s".
func (r *Report) Span() string {
	if len(r.Failures) == 0 {
		return ""
	}
	first, last := r.Failures[0].At, r.Failures[0].At+r.Failures[0].After
	for _, f := range r.Failures {
		first, last = min(first, f.At), max(last, f.At+f.After)
	}
	return fmt.Sprintf("%v–%v", first.Round(time.Millisecond), last.Round(time.Millisecond))
}

// WriteTable writes reports as a table, a line each.
func WriteTable(w io.Writer, reports []*Report) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "event\tlasted\tconnections\tfailed\tp50\tp99\tslowest\tstreams\tbroken\tlongest wait\tfailures\twhen")
	for _, r := range reports {
		fmt.Fprintf(t, "%s\t%v\t%d\t%d\t%v\t%v\t%v\t%d\t%d\t%v\t%s\t%s\n", r.Event, r.Lasted.Round(100*time.Millisecond),
			r.Connections, r.Failed, ms(r.P50), ms(r.P99), ms(r.Slowest), r.Streams, r.Broken, ms(r.LongestWait), r.Reasons(), r.Span())
	}
	return t.Flush()
}

// ms rounds a duration for people.
func ms(d time.Duration) time.Duration {
	if d > 100*time.Millisecond {
		return d.Round(time.Millisecond)
	}
	return d.Round(10 * time.Microsecond)
}
