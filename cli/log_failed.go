package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/culvert-mesh/culvert/cli/laptop"
	"github.com/culvert-mesh/culvert/pkg/run"
	"github.com/culvert-mesh/culvert/ztunnel/proxy"
)

// failedPeriod is how often --follow asks for what is new.
const failedPeriod = 500 * time.Millisecond

// showFailed shows what the flight recorder of a pod's node knows about the pod.
func showFailed(ctx context.Context, e *env, out *output, client meshReader, want string, last int, follow bool) error {
	st, err := client.Status(ctx)
	if err != nil {
		return err
	}
	p, missing := findPod(st, want)
	if missing != nil { // what has gone is remembered for a while, by its full name
		namespace, name, _ := strings.Cut(want, "/")
		p = &laptop.PodStatus{Namespace: namespace, Name: name}
	}
	list, err := failures(ctx, client, st, p, time.Time{})
	if err != nil {
		return err
	}
	if missing != nil && len(list) == 0 {
		return missing
	}
	if last > 0 && len(list) > last {
		list = list[len(list)-last:]
	}
	if !follow {
		return out.write(e.stdout, list, func(w io.Writer) error { return printFailures(w, list) })
	}
	show, err := failurePrinter(e, out)
	if err != nil {
		return err
	}
	for {
		var since time.Time
		for _, f := range list {
			show(f)
			since = f.Time
		}
		if run.Sleep(ctx, failedPeriod) != nil {
			return nil
		}
		if since.IsZero() {
			since = time.Now().Add(-failedPeriod)
		}
		if list, err = failures(ctx, client, st, p, since); err != nil {
			return err
		}
	}
}

// failures asks the ztunnels of all nodes for connections from or to a pod, oldest
// first: which policy denied, only the other side's ztunnel knows. Only the pod's
// own has to answer.
func failures(ctx context.Context, client meshReader, st *laptop.Status, p *laptop.PodStatus, since time.Time) ([]proxy.Failure, error) {
	q := url.Values{"pod": {p.Namespace + "/" + p.Name}}
	if !since.IsZero() {
		q.Set("since", since.Format(time.RFC3339Nano))
	}
	all := []proxy.Failure{}
	for _, n := range st.Nodes {
		answer, err := client.Admin(ctx, "ztunnel-"+n.Name, http.MethodGet, "/debug/failures?"+q.Encode(), nil)
		var list []proxy.Failure
		if err == nil {
			err = json.Unmarshal(answer, &list)
		}
		if err != nil && n.Name == p.Node {
			return nil, fmt.Errorf("ask the ztunnel of %s: %w", n.Name, err)
		}
		all = append(all, list...)
	}
	slices.SortStableFunc(all, func(a, b proxy.Failure) int { return a.Time.Compare(b.Time) })
	return all, nil
}

func failurePrinter(e *env, out *output) (func(proxy.Failure), error) {
	switch out.format {
	case "text":
		return func(f proxy.Failure) { fmt.Fprintln(e.stdout, strings.Join(failureRow(f), "  ")) }, nil
	case "json":
		enc := json.NewEncoder(e.stdout)
		return func(f proxy.Failure) { _ = enc.Encode(f) }, nil
	}
	return nil, out.write(e.stdout, nil, nil)
}

func printFailures(w io.Writer, list []proxy.Failure) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(w, "no failed connection is remembered")
		return err
	}
	var rows [][]string
	for _, f := range list {
		rows = append(rows, failureRow(f))
	}
	return table(w, "TIME DIRECTION FROM TO HOP STAGE POLICY MS TIMINGS ERROR", rows)
}

func failureRow(f proxy.Failure) []string {
	return []string{
		f.Time.Local().Format("15:04:05.000"), f.Direction, endText(f.Source), toText(f), f.Hop, f.Stage, f.Policy,
		fmt.Sprintf("%.1f", f.Timings.Total), timingsText(f.Timings), f.Error,
	}
}

func endText(e proxy.FailedEnd) string {
	if e.Workload != "" {
		return e.Namespace + "/" + e.Workload
	}
	return e.Addr
}

// toText is what was dialled, and which workload that turned out to be.
func toText(f proxy.Failure) string {
	switch end := endText(f.Destination); {
	case f.Dialled == "" || f.Dialled == end:
		return end
	case f.Destination.Workload == "":
		return f.Dialled
	default:
		return f.Dialled + "→" + end
	}
}

func timingsText(t proxy.Timings) string {
	var parts []string
	for _, p := range []struct {
		name string
		ms   float64
	}{{"learn", t.Learn}, {"choose", t.Choose}, {"dial", t.Dial}, {"tls", t.TLS}, {"connect", t.Connect}, {"relay", t.Relay}} {
		if p.ms >= 0.05 {
			parts = append(parts, fmt.Sprintf("%s=%.1f", p.name, p.ms))
		}
	}
	return strings.Join(parts, ",")
}

// changeLevels shows a component's log levels, after changing them if asked to.
func changeLevels(ctx context.Context, e *env, out *output, client meshReader, target string, filters []string) error {
	component, err := componentOf(ctx, client, target)
	if err != nil {
		return err
	}
	path := "/logging"
	switch filter := strings.Join(filters, ","); filter {
	case "":
	case "reset":
		path += "?reset"
	default:
		path += "?level=" + url.QueryEscape(filter)
	}
	answer, err := client.Admin(ctx, component, http.MethodPost, path, nil)
	if err != nil {
		return laptop.WithHint(fmt.Errorf("log levels of %s: %w", component, err), "culvert log --level %s proxy=debug,access=info; \"reset\" takes it back", target)
	}
	levels := strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(string(answer)), "current log level is "))
	v := struct {
		Component string `json:"component"`
		Levels    string `json:"levels"`
	}{component, levels}
	return out.write(e.stdout, v, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%s: %s\n", component, levels)
		return err
	})
}

// componentOf takes a component's name as ps shows it, or a pod: a waypoint's own,
// else the ztunnel of its node.
func componentOf(ctx context.Context, client meshReader, target string) (string, error) {
	st, err := client.Status(ctx)
	if err != nil {
		return "", err
	}
	for _, c := range st.Components {
		if c.Name == target {
			return target, nil
		}
	}
	p, err := findPod(st, target)
	switch {
	case err != nil:
		return "", laptop.WithHint(fmt.Errorf("there is no component and no pod %q", target), "culvert ps lists them")
	case p.Mesh == laptop.MeshWaypoint:
		return p.Namespace + "/" + p.Name, nil
	}
	return "ztunnel-" + p.Node, nil
}
