package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/cli/laptop"
	"github.com/culvert-mesh/culvert/cli/laptop/access"
	"github.com/culvert-mesh/culvert/cli/laptop/fetch"
	"github.com/culvert-mesh/culvert/cli/laptop/pod"
	"github.com/culvert-mesh/culvert/cli/laptop/wiretap"
)

func demoCommand(e *env) *cobra.Command {
	c := &cobra.Command{
		Use:   "demo",
		Short: "Bring up two nodes with a small shop and show what the mesh does to real traffic",
		Long: `Bring up two nodes with a small shop and show what the mesh does to real traffic.

Every line is something observed in this run. The status is 0 only if all of it
was as it should be.`,
		Args: cobra.NoArgs,
	}
	folder := c.Flags().String("folder", "examples/shop", "the shop's YAML")
	name := c.Flags().String("name", "demo", "name of the mesh while it runs")
	c.RunE = func(c *cobra.Command, _ []string) error {
		d := &demo{e: e, out: e.stdout}
		return d.run(c.Context(), *name, *folder)
	}
	return c
}

// demo is one run of it.
type demo struct {
	e    *env
	out  io.Writer
	mesh *laptop.Mesh
	tap  *wiretap.Tap

	facts []fact
}

// fact is one thing that was to be seen, and whether it was.
type fact struct {
	what string
	ok   bool
	seen string
}

// step is one part of the demo.
type step struct {
	title string
	show  func(*demo, context.Context) error
}

func demoSteps() []step {
	return []step{
		{"a request from one node to the other", (*demo).crossNodes},
		{"what can be read on the wire between the nodes", (*demo).wire},
		{"an AuthorizationPolicy for payments: only the cart may call", (*demo).policy},
		{"strict mutual TLS: a program outside the mesh calls the cart", (*demo).strict},
		{"the waypoint splits the catalog's requests 90/10 (HTTPRoute)", (*demo).split},
		{"a header chooses the route", (*demo).header},
		{"an L7 policy at the waypoint: the catalog is read only", (*demo).readOnly},
		{"the control plane is killed while traffic goes on", (*demo).controlPlane},
		{"a ztunnel is drained and replaced while traffic goes on", (*demo).replace},
	}
}

// startPatience is how long the shop may take to be ready.
const startPatience = time.Minute

func (d *demo) run(ctx context.Context, name, folder string) error {
	if st, err := os.Stat(folder); err != nil || !st.IsDir() {
		return laptop.WithHint(fmt.Errorf("%s is no folder", folder), "run the demo in the repository's top folder, or give --folder")
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	fmt.Fprintf(d.out, "Two nodes and a shop of five services, from %s.\n", folder)
	m, err := newMesh(d.e, upOptions{name: name, nodes: 2}, []string{folder}, d.trouble)
	if err != nil {
		return err
	}
	d.mesh = m
	ended := make(chan error, 1)
	go func() {
		err := m.Run(ctx)
		cancel(errors.Join(err, errMeshEnded))
		ended <- err
	}()
	err = d.observe(ctx)
	cancel(nil)
	runErr := <-ended
	if err == nil && runErr != nil && !errors.Is(runErr, context.Canceled) {
		err = runErr
	}
	if err != nil {
		return err
	}
	return d.summary()
}

var errMeshEnded = errors.New("the mesh has ended")

// trouble prints those events of the mesh that nobody asked for.
func (d *demo) trouble(ev laptop.Event) {
	if ev.Bad {
		fmt.Fprintf(d.out, "      (%s: %s)\n", ev.Subject, ev.Text)
	}
}

// observe waits for the mesh and goes through the steps.
func (d *demo) observe(ctx context.Context) error {
	began := time.Now()
	if err := d.start(ctx); err != nil {
		return err
	}
	st, err := d.mesh.Status(ctx)
	if err != nil {
		return err
	}
	d.fact(true, "everything is ready", "%d pods on %d nodes after %s", len(st.Pods), len(st.Nodes), time.Since(began).Round(10*time.Millisecond))
	for _, s := range demoSteps() {
		fmt.Fprintf(d.out, "\n%s\n", s.title)
		if err := s.show(d, ctx); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			d.fact(false, s.title, "%v", err)
		}
	}
	return nil
}

// start opens the tap before the first packet and waits until all is ready.
func (d *demo) start(ctx context.Context) error {
	select {
	case <-d.mesh.Built():
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	var err error
	if d.tap, err = d.mesh.Tap("node-1"); err != nil {
		return err
	}
	go func() { _ = d.tap.Run(ctx) }()
	timeout := time.NewTimer(startPatience)
	defer timeout.Stop()
	select {
	case <-d.mesh.Ready():
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timeout.C:
	}
	st, err := d.mesh.Status(ctx)
	if err != nil {
		return err
	}
	return fmt.Errorf("the shop is not ready after %s: %s", startPatience, strings.Join(append(st.NotReady, problems(st)...), "; "))
}

// fact prints and keeps what was seen.
func (d *demo) fact(ok bool, what, format string, args ...any) {
	f := fact{what, ok, fmt.Sprintf(format, args...)}
	d.facts = append(d.facts, f)
	fmt.Fprintf(d.out, "  %s %s: %s\n", mark(ok), f.what, f.seen)
}

func mark(ok bool) string {
	if ok {
		return "✓"
	}
	return "✗"
}

// errDemo says that not everything was as it should be.
var errDemo = errors.New("not everything was as it should be: see the lines marked ✗")

func (d *demo) summary() error {
	var rows [][]string
	all := true
	for _, f := range d.facts {
		rows = append(rows, []string{mark(f.ok), f.what})
		all = all && f.ok
	}
	fmt.Fprintln(d.out, "\nsummary")
	if err := table(d.out, "  WHAT", prefix(rows)); err != nil {
		return err
	}
	if !all {
		return errDemo
	}
	fmt.Fprintf(d.out, "\nall %d held; everything is removed again\n", len(d.facts))
	return nil
}

// prefix joins each row to one cell: the table has one column.
func prefix(rows [][]string) [][]string {
	for i, r := range rows {
		rows[i] = []string{strings.Join(r, " ")}
	}
	return rows
}

// fetch runs the client inside a pod and returns what it counted.
func (d *demo) fetch(ctx context.Context, from string, args ...string) (*fetch.Result, error) {
	st, err := d.mesh.Status(ctx)
	if err != nil {
		return nil, err
	}
	p, err := findPod(st, from)
	if err != nil {
		return nil, err
	}
	var stdout, stderr bytes.Buffer
	_, err = pod.Exec(ctx, pod.ExecSpec{PID: p.PID, Env: p.Env, Stdout: &stdout, Stderr: &stderr,
		Command: append([]string{"culvert", "fetch", "-o", "json"}, args...)})
	if err != nil {
		return nil, err
	}
	res := new(fetch.Result)
	if err := json.Unmarshal(stdout.Bytes(), res); err != nil {
		return nil, fmt.Errorf("fetch in %s: %w: %s", from, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return res, nil
}

// load is a paced load that runs beside what a step does.
type load struct {
	res  *fetch.Result
	err  error
	done chan struct{}
}

func (d *demo) load(ctx context.Context, from string, args ...string) *load {
	l := &load{done: make(chan struct{})}
	go func() {
		defer close(l.done)
		l.res, l.err = d.fetch(ctx, from, args...)
	}()
	return l
}

func (l *load) wait() (*fetch.Result, error) {
	<-l.done
	return l.res, l.err
}

// logPatience is how long an access line may take to be written.
const logPatience = 5 * time.Second

// record waits for an access line.
func (d *demo) record(ctx context.Context, wanted func(access.Record) bool) (access.Record, error) {
	for end := time.Now().Add(logPatience); ; {
		all, err := access.Read(d.mesh.Dir().Logs())
		if err != nil {
			return access.Record{}, err
		}
		for i := len(all) - 1; i >= 0; i-- {
			if wanted(all[i]) {
				return all[i], nil
			}
		}
		if time.Now().After(end) {
			return access.Record{}, errors.New("no such line in the access log")
		}
		select {
		case <-ctx.Done():
			return access.Record{}, context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
