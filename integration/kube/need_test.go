package main

import "testing"

func TestRequire(t *testing.T) {
	t.Parallel()
	there, none := need{"sh", "dash"}, need{"no-such-program", "b a"}
	if err := require([]need{there}); err != nil {
		t.Error(err)
	}
	want := "missing: no-such-program, /no/such/file: apt-get install -y --no-install-recommends a b"
	if err := require([]need{none, there, {"/no/such/file", "b"}}); err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}
