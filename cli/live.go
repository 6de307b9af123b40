package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"github.com/culvert-mesh/culvert/cli/laptop"
)

// redrawPeriod is how often the live view is drawn.
const redrawPeriod = 500 * time.Millisecond

// liveView redraws a page on a terminal: components, pods, connections, events.
// Until the mesh runs, it prints its events as lines.
type liveView struct {
	f    *os.File
	over chan struct{}

	mu     sync.Mutex
	events []laptop.Event
	live   bool
}

func newLiveView(f *os.File) *liveView { return &liveView{f: f, over: make(chan struct{})} }

// shownEvents is how many of the newest events the page has.
const shownEvents = 8

func (v *liveView) event(ev laptop.Event) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.live {
		fmt.Fprintln(v.f, eventLine(ev))
	}
	if v.events = append(v.events, ev); len(v.events) > shownEvents {
		v.events = v.events[1:]
	}
}

func (v *liveView) stop() { close(v.over) }

func (v *liveView) run(ctx context.Context, m *laptop.Mesh) {
	select {
	case <-m.Ready():
	case <-v.over:
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	recent := newRecentConnections(shownConnections)
	go recent.follow(ctx, m.Dir())
	v.setLive(true)
	defer v.setLive(false)
	fmt.Fprint(v.f, "\x1b[?1049h\x1b[?25l")       // the terminal's other page, no cursor
	defer fmt.Fprint(v.f, "\x1b[?25h\x1b[?1049l") // back to what was there
	t := time.NewTicker(redrawPeriod)
	defer t.Stop()
	for {
		if st, err := m.Status(ctx); err == nil {
			v.draw(st, recent.lines())
		}
		select {
		case <-t.C:
		case <-v.over:
			return
		}
	}
}

func (v *liveView) setLive(on bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.live = on
}

// draw writes one page, cut to the terminal's size, in a single write.
func (v *liveView) draw(st *laptop.Status, connections []string) {
	width, height, err := term.GetSize(int(v.f.Fd()))
	if err != nil {
		width, height = 120, 40
	}
	lines := v.page(st, connections)
	var b strings.Builder
	b.WriteString("\x1b[H")
	for _, l := range lines[:min(len(lines), height-1)] {
		b.WriteString(cut(l, width))
		b.WriteString("\x1b[K\r\n")
	}
	b.WriteString("\x1b[J")
	_, _ = v.f.WriteString(b.String())
}

func (v *liveView) page(st *laptop.Status, connections []string) []string {
	state := "ready"
	if !st.Ready {
		state = "not ready"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "culvert · mesh %q · %s · up %s · Ctrl-C stops it and removes everything\n\n", st.Name, state, age(st.Since))
	list := problems(st)
	for _, p := range list {
		b.WriteString("! " + p + "\n")
	}
	if len(list) > 0 {
		b.WriteString("\n")
	}
	_ = table(&b, "COMPONENT STATE PROCESS RESTARTS REPLACED SINCE LAST-EXIT", componentRows(st))
	b.WriteString("\n")
	_ = table(&b, "POD NODE ADDRESS MESH READY RESTARTS AGE IDENTITY", podRows(st))
	b.WriteString("\nrecent connections\n")
	for _, c := range connections {
		b.WriteString("  " + c + "\n")
	}
	b.WriteString("\nevents\n")
	v.mu.Lock()
	for _, ev := range v.events {
		b.WriteString("  " + eventLine(ev) + "\n")
	}
	v.mu.Unlock()
	return strings.Split(strings.TrimRight(b.String(), "\n"), "\n")
}

// cut shortens a line to the terminal's width.
func cut(s string, width int) string {
	r := []rune(s)
	if len(r) <= width {
		return s
	}
	return string(r[:max(width-1, 0)]) + "…"
}
