package main

import "testing"

func TestSupervised(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args  []string
		pid   int
		child bool
		want  bool
	}{
		{nil, 7, false, false},
		{[]string{"proxy", "ztunnel"}, 7, false, false},
		{[]string{"proxy", "ztunnel"}, 1, false, true},
		{nil, 1, false, true},
		{[]string{"proxy"}, 1, true, false}, // a PID namespace of its own below the supervisor
		{[]string{"supervise"}, 7, false, true},
	} {
		if got := supervised(c.args, c.pid, c.child); got != c.want {
			t.Errorf("%q as process %d, child %v: supervised %v", c.args, c.pid, c.child, got)
		}
	}
}
