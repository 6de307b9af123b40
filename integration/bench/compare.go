package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// compareMain brings one mesh up per path, runs the rounds and prints the table.
func compareMain(ctx context.Context, args []string) error {
	o, err := parseOptions(args)
	if err != nil {
		return err
	}
	paths, err := choosePaths(o)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "culvert-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b := bench{options: o, paths: paths, samples: map[string]map[string][]sample{}, mem: map[string]memory{}}
	for _, p := range paths {
		defer p.down()
		fmt.Fprintf(os.Stderr, "bench: starting %s\n", p.name)
		if err := p.up(ctx, dir); err != nil {
			return err
		}
	}
	if err := b.run(ctx); err != nil {
		return err
	}
	for _, p := range paths {
		p.down()
	}
	grown, err := b.grow(ctx, dir)
	if err != nil {
		return err
	}
	b.print()
	return grown.print(os.Stdout)
}

func choosePaths(o options) ([]*path, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	culvert, err := filepath.Abs(o.culvert)
	if err != nil {
		return nil, err
	}
	paths := []*path{{name: "relay", mesh: meshName("relay"), culvert: culvert, self: self}}
	for _, z := range []struct{ name, binary string }{{"culvert", o.ztunnel}, {"peer", o.peer}} {
		if z.binary == "" {
			continue
		}
		binary, err := filepath.Abs(z.binary)
		if err != nil {
			return nil, err
		}
		if _, err := os.Stat(binary); err != nil {
			return nil, fmt.Errorf("ztunnel %s: %w", z.name, err)
		}
		paths = append(paths, &path{name: z.name, mesh: meshName(z.name), culvert: culvert, self: self, ztunnel: binary})
	}
	return paths, nil
}

// meshName is that of a mesh of this run; another run beside it has others.
func meshName(path string) string { return fmt.Sprintf("bench-%s-%d", path, os.Getpid()) }

// bench collects samples by scenario and path.
type bench struct {
	options
	paths   []*path
	samples map[string]map[string][]sample
	mem     map[string]memory
}

func (b *bench) run(ctx context.Context) error {
	if err := b.measureMemory(ctx); err != nil {
		return err
	}
	for _, s := range b.scenarios() {
		b.samples[s.name] = map[string][]sample{}
		for round := range b.rounds {
			for _, p := range b.paths {
				fmt.Fprintf(os.Stderr, "bench: %s, round %d of %d, %s\n", s.name, round+1, b.rounds, p.name)
				one, err := p.measure(ctx, s, b.duration)
				if err != nil {
					return err
				}
				fmt.Fprintln(os.Stderr, "bench:  ", s.figures(one))
				b.samples[s.name][p.name] = append(b.samples[s.name][p.name], one)
			}
		}
	}
	return b.measureStalled(ctx)
}

// relayIdle is how many idle connections a relay is asked to hold: each costs it six
// descriptors, of the pipes too.
const relayIdle = 2000

// settle is how long nothing happens before a proxy is called at rest, and a
// connection idle.
const settle = 4 * time.Second

// pause waits, or until ctx ends: whatever is measured then is not printed.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// measureMemory comes first: what a load leaves behind in a heap would hide what
// an idle connection costs.
func (b *bench) measureMemory(ctx context.Context) error {
	pause(ctx, settle)
	for _, p := range b.paths {
		rest, err := p.resident()
		if err != nil {
			return err
		}
		own, err := p.sum(ownBytes)
		if err != nil {
			return err
		}
		conns := b.idle
		if p.ztunnel == "" {
			conns = min(conns, relayIdle)
		}
		idle, err := p.measureHeld(ctx, loadIdle, conns)
		if err != nil {
			return err
		}
		b.mem[p.name] = memory{rest: rest, own: own, idle: idle, conns: conns}
	}
	return nil
}

// measureStalled comes last, for the same reason.
func (b *bench) measureStalled(ctx context.Context) error {
	for _, p := range b.paths {
		if b.stalled == 0 || p.ztunnel == "" {
			continue
		}
		m := b.mem[p.name]
		var err error
		if m.before, err = p.resident(); err != nil {
			return err
		}
		if m.stalled, err = p.measureHeld(ctx, loadStalled, b.stalled); err != nil {
			return err
		}
		b.mem[p.name] = m
	}
	return nil
}

func (b *bench) scenarios() (out []scenario) {
	for _, s := range scenarios {
		if strings.Contains(s.name, b.only) {
			out = append(out, s)
		}
	}
	return out
}

func (b *bench) print() {
	var names []string
	for _, p := range b.paths {
		names = append(names, p.name)
	}
	fmt.Printf("medians of %d rounds of %v\n", b.rounds, b.duration)
	printTable(os.Stdout, names, b.scenarios(), b.samples, b.mem, b.idle, b.stalled)
}
