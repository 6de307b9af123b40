package runtest

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
)

func TestMain(m *testing.M) { Main(m) }

// TestNotAgain: a test binary that its own test starts runs no tests, however it
// was started.
func TestNotAgain(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for what, cmd := range map[string]*exec.Cmd{
		"as it is":         exec.Command(self),
		"as a test binary": exec.Command(self, "-test.run=^TestNotAgain$"),
		"as a program":     exec.Command(self, "component", "pod-init"),
		"by another":       exec.Command("/bin/sh", "-c", `"$0" -test.v; exit $?`, self),
	} {
		cmd.Env = []string{} // nothing that is inherited is needed
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != againStatus || !strings.Contains(string(out), "started by its own tests") {
			t.Errorf("%s: %v\n%s", what, err, out)
		}
	}
}

// TestAgain: what `go test` and the fuzzer start runs the tests.
func TestAgain(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"x.test"}, {"x.test", "-test.v"}, {"x.test", "-test.v", "component"}, {"x.test", "-test.fuzzworker"}} {
		if why := again(args); why != "" {
			t.Errorf("%q: %s", args, why)
		}
	}
	if again([]string{"x.test", "component"}) == "" {
		t.Error("a program's command line is taken for that of tests")
	}
}
