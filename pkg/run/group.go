// Package run starts and stops programs: signals, groups of parts that live and
// die together, and waiting between attempts.
//
//	func main() { run.Main("ztunnel", start) }
//
//	var g run.Group
//	g.Add("xds", client.Run)      ─┐
//	g.Add("admin", server.Run)     ├─ all run at once; the first error or panic
//	g.Add("certs", cache.Run)     ─┘  cancels the rest, and Run waits for all
//	err := g.Run(ctx)
//
// A Group is filled by one goroutine and then run once. A Backoff belongs to one
// goroutine. The functions are safe for concurrent use.
package run

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
)

// Group is a flat list of parts that run together. The zero Group is empty and
// ready to use.
type Group struct {
	parts []part
}

type part struct {
	name string
	run  func(context.Context) error
}

// Add adds a part. It must be called before Run.
func (g *Group) Add(name string, run func(context.Context) error) {
	g.parts = append(g.parts, part{name, run})
}

// Run runs every part in its own goroutine and waits until all have returned.
// The first part that fails cancels the others with its error as the cause, and
// Run returns that error, prefixed with the part's name. A part that returns nil
// just ends; the others go on. A panic counts as a failure and its message
// carries the stack. When ctx ends first, errors that only repeat its
// cancellation are not failures and Run returns nil.
func (g *Group) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		wg    sync.WaitGroup
		once  sync.Once
		first error
	)
	for _, p := range g.parts {
		wg.Go(func() {
			err := p.safely(ctx)
			if err == nil || isEcho(ctx, err) {
				return
			}
			once.Do(func() {
				first = fmt.Errorf("%s: %w", p.name, err)
				cancel(first)
			})
		})
	}
	wg.Wait()
	return first
}

// isEcho reports whether err merely repeats that ctx has ended.
func isEcho(ctx context.Context, err error) bool {
	return ctx.Err() != nil && (errors.Is(err, ctx.Err()) || errors.Is(err, context.Cause(ctx)))
}

// safely runs the part and turns a panic into an error.
func (p part) safely(ctx context.Context) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v\n%s", r, debug.Stack())
		}
	}()
	return p.run(ctx)
}
