package clock

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestMain is a program that says what time it is, when asked to.
func TestMain(m *testing.M) {
	if os.Getenv("CULVERT_TELLS_TIME") == "" {
		os.Exit(m.Run())
	}
	go func() { // a thread that reads the clock all the time
		for time.Now().Unix() > 0 {
		}
	}()
	for s := bufio.NewScanner(os.Stdin); s.Scan(); {
		fmt.Println(time.Now().Unix())
	}
}

// TestShift holds that a process has another time while it runs, others have not, and
// that it can be put right.
func TestShift(t *testing.T) {
	if !Supported {
		t.Skip("only on Linux and x86-64")
	}
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "CULVERT_TELLS_TIME=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer in.Close()
	lines := bufio.NewReader(out)
	for _, d := range []time.Duration{0, time.Hour, -time.Minute, 0} {
		if err := Shift(cmd.Process.Pid, d); err != nil {
			t.Fatal(err)
		}
		before := time.Now().Add(d).Unix()
		if _, err := io.WriteString(in, "?\n"); err != nil {
			t.Fatal(err)
		}
		line, err := lines.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		told, err := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
		if after := time.Now().Add(d).Unix(); err != nil || told < before || told > after {
			t.Errorf("by %v: it says %d, want from %d to %d (%v)", d, told, before, after, err)
		}
	}
}
