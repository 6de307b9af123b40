package logfile

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

func TestTurnsOver(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "x.log")
	w, err := Open(path, 100)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 30 {
		if _, err := fmt.Fprintf(w, "line %d\n", i); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	if err := Lines(path, func(l []byte) { got = append(got, string(l)) }); err != nil {
		t.Fatal(err)
	}
	if len(got) == 0 || len(got) >= 30 || got[len(got)-1] != "line 29" {
		t.Errorf("kept %q", got)
	}
	for _, p := range []string{path, path + ".1"} {
		if st, err := os.Stat(p); err != nil || st.Size() > 100 {
			t.Errorf("%s: %v, %v", p, st, err)
		}
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	if _, err := w.Write([]byte("late")); err != nil {
		t.Errorf("a write after Close: %v", err)
	}
}

// TestFollow: from the end on, whole lines only, across a turn-over.
func TestFollow(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "x.log")
	w, err := Open(path, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	fmt.Fprint(w, "before\n")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	lines := make(chan string)
	done := make(chan error, 1)
	hand := func(l []byte) {
		select {
		case lines <- string(l):
		case <-ctx.Done():
		}
	}
	go func() { done <- Follow(ctx, path, hand) }()
	// Follow starts at the end, whenever that is: write until it answers.
	var first string
	for i := 0; first == ""; i++ {
		fmt.Fprintf(w, "try %d\n", i)
		select {
		case first = <-lines:
		case err := <-done:
			t.Fatal(err)
		default:
		}
	}
	fmt.Fprint(w, "half ")
	fmt.Fprint(w, "and half\n")
	await(lines, "half and half")
	w.mu.Lock()
	err = w.turn()
	w.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(w, "the end\n")
	await(lines, "the end")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func await(lines <-chan string, want string) {
	for l := range lines {
		if l == want {
			return
		}
	}
}
