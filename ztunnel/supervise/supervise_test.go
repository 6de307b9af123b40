package supervise

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/pkg/handover"
	"github.com/culvert-mesh/culvert/pkg/run/runtest"
)

// roleVariable makes the test's binary a program of the test.
const roleVariable = "SUPERVISE_TEST_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(roleVariable) {
	case "supervisor":
		os.Exit(supervisor())
	case "proxy":
		os.Exit(proxy())
	}
	runtest.Main(m)
}

func supervisor() int {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	env := with(os.Environ(), roleVariable, "proxy")
	err := Run(context.Background(), Config{Path: "/proc/self/exe", Env: env, Signals: signals, Log: slog.New(slog.DiscardHandler)})
	var exit *Exit
	if errors.As(err, &exit) {
		return exit.Status
	}
	if err != nil {
		return 99
	}
	return 0
}

// proxy listens, or goes on listening, and tells whoever connects its process.
func proxy() int {
	fd, err := strconv.Atoi(os.Getenv(FDVariable))
	if err != nil {
		return 90
	}
	conn, err := handover.Inherited(os.NewFile(uintptr(fd), "store"))
	if err != nil {
		return 91
	}
	c := handover.NewClient(handover.ClientConfig{Conn: conn, Private: true})
	if err := c.Attach(); err != nil {
		return 92
	}
	var l net.Listener
	stores, key := handover.Stores{c}, handover.Key{Pod: "p"}
	if f := stores.Take(key)["s"]; f != nil {
		l, err = net.FileListener(f)
	} else if l, err = net.Listen("tcp", "127.0.0.1:0"); err == nil {
		stores.Put(key, map[string]syscall.Conn{"s": l.(*net.TCPListener)})
	}
	if err != nil {
		return 93
	}
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	go func() { <-term; os.Exit(7) }()
	fmt.Println(l.Addr())
	for {
		c, err := l.Accept()
		if err != nil {
			return 94
		}
		fmt.Fprintln(c, os.Getpid())
		c.Close()
	}
}

// ask connects and returns the process that answers. The connection is made at
// once also while no proxy runs.
func ask(t *testing.T, addr string) (pid int) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatalf("refused: %v", err)
	}
	defer c.Close()
	text, err := io.ReadAll(c)
	if err != nil {
		t.Fatalf("not answered: %v", err)
	}
	if pid, err = strconv.Atoi(strings.TrimSpace(string(text))); err != nil {
		t.Fatal(err)
	}
	return pid
}

// TestCrashes: whoever connects is answered, however often the proxy is killed;
// and when the proxy ends because it is told to, so does the supervisor.
func TestCrashes(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = with(os.Environ(), roleVariable, "supervisor")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	lines.Scan()
	addr := lines.Text()
	seen := map[int]bool{}
	for range 4 {
		pid := ask(t, addr)
		if seen[pid] || pid == cmd.Process.Pid {
			t.Fatalf("answered by process %d again", pid)
		}
		seen[pid] = true
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if lines.Scan(); lines.Text() != addr {
			t.Fatalf("the next proxy listens on %q, not on %q", lines.Text(), addr)
		}
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 7 {
		t.Errorf("the supervisor ended with %v, want the proxy's status 7", err)
	}
}

func TestJudge(t *testing.T) {
	t.Parallel()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []struct {
		what    string
		ctx     context.Context
		status  unix.WaitStatus
		crashed bool
		err     string
	}{
		{"done", t.Context(), 0, false, ""},
		{"killed", t.Context(), unix.WaitStatus(syscall.SIGKILL), true, "signal: killed"},
		{"panic", t.Context(), 2 << 8, true, "the proxy ended with status 2"},
		{"bad configuration", t.Context(), 1 << 8, false, "the proxy ended with status 1"},
		{"we end", ended, unix.WaitStatus(syscall.SIGKILL), false, "context canceled"},
	} {
		crashed, err := judge(c.ctx, c.status)
		text := ""
		if err != nil {
			text = err.Error()
		}
		if crashed != c.crashed || text != c.err {
			t.Errorf("%s: crashed %v, %q", c.what, crashed, text)
		}
	}
}

// TestNested: a supervisor whose proxy supervises would fill the machine.
func TestNested(t *testing.T) {
	t.Parallel()
	cfg := Config{Path: "/proc/self/exe", Env: []string{FDVariable + "=3"}, Log: slog.New(slog.DiscardHandler)}
	if err := Run(t.Context(), cfg); !errors.Is(err, errNested) {
		t.Error(err)
	}
}

// TestCannotStart: a program that is not there is not tried for ever.
func TestCannotStart(t *testing.T) {
	t.Parallel()
	done := make(chan error)
	go func() {
		done <- Run(t.Context(), Config{Path: "/nonexistent", Log: slog.New(slog.DiscardHandler)})
	}()
	if err := <-done; !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
