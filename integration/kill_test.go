package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/culvert-mesh/culvert/cli/laptop"
	"github.com/culvert-mesh/culvert/integration/script"
	"github.com/culvert-mesh/culvert/pkg/run"
)

// Kill kills a component, or a pod's process by the beginning of the pod's name,
// and waits until the process is gone.
func (laptopHost) Kill(ts *testscript.TestScript, what string) error {
	pid, err := processOf(ts.Getenv("CULVERT_NAME"), what)
	if err == nil && pid == 0 {
		err = fmt.Errorf("%s does not run", what)
	}
	if err != nil {
		return err
	}
	return kill(pid)
}

// componentOf returns the process of a component of a mesh, 0 if it does not run.
func componentOf(ctx context.Context, c *laptop.Client, name string) (pid int, err error) {
	st, err := c.Status(ctx)
	if err != nil {
		return 0, err
	}
	for _, c := range st.Components {
		if c.Name == name {
			pid = c.PID
		}
	}
	return pid, nil
}

// processOf returns the process of a component or of a pod in a mesh, 0 if it does
// not run; that of "up" is culvert itself.
func processOf(mesh, of string) (pid int, err error) {
	if of == "up" {
		raw, err := os.ReadFile(filepath.Join(laptop.Root, mesh+".lock"))
		if err != nil {
			return 0, err
		}
		var owner struct{ PID int }
		err = json.Unmarshal(raw, &owner)
		return owner.PID, err
	}
	out, err := exec.Command(filepath.Join(bin, "culvert"), "ps", "-o", "json", "--name", mesh).Output()
	if err != nil {
		return 0, err
	}
	var st laptop.Status
	if err := json.Unmarshal(out, &st); err != nil {
		return 0, err
	}
	for _, c := range st.Components {
		if c.Name == of {
			return c.PID, nil
		}
	}
	for _, p := range st.Pods {
		if strings.HasPrefix(p.Namespace+"/"+p.Name, of) {
			pid = p.PID
		}
	}
	return pid, nil
}

// kill kills a process and waits until it is gone.
func kill(pid int) error {
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return err
	}
	for end := time.Now().Add(script.Patience); syscall.Kill(pid, 0) == nil; time.Sleep(5 * time.Millisecond) {
		state, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if strings.Contains(string(state), ") Z ") {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("process %d does not end", pid)
		}
	}
	return nil
}

// KeepDead kills a component now, and again as often as it comes back: before it can
// serve, also where starting a program to ask for the process would take longer than
// that.
func (h laptopHost) KeepDead(ts *testscript.TestScript, what string) (func(), error) {
	if err := h.Kill(ts, what); err != nil {
		return nil, err
	}
	client, err := laptop.NewClient(ts.Getenv("CULVERT_NAME"))
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for run.Sleep(ctx, 2*time.Millisecond) == nil {
			if pid, err := componentOf(ctx, client, what); err == nil && pid != 0 {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	}()
	return func() { stop(); <-stopped }, nil
}
