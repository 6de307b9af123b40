package run

import "context"

// RunFront runs the group around a front: the part that takes in work and drains
// it. When ctx ends, only the front is told, by its context serving; the other
// parts go on so that work under way can finish, until the front returns. When a
// part fails, serving ends as well and so does the front's ctx, which bounds what
// it may still do.
//
//	ctx ends ──▶ serving ends ──▶ front drains ──▶ front returns ──▶ parts end
func (g *Group) RunFront(ctx context.Context, name string, front func(ctx, serving context.Context) error) error {
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	g.Add(name, func(inner context.Context) error {
		defer end()
		serving, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		stop := context.AfterFunc(inner, func() { cancel(context.Cause(inner)) })
		defer stop()
		return front(inner, serving)
	})
	return g.Run(life)
}
