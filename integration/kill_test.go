package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/culvert-mesh/culvert/cli/laptop"
	"github.com/culvert-mesh/culvert/pkg/run"
)

// kill9 kills a component, or a pod's process by the beginning of the pod's name,
// and waits until the process is gone.
func kill9(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: kill9 COMPONENT|NAMESPACE/POD")
	}
	pid, err := processOf(ts.Getenv("CULVERT_NAME"), args[0])
	ts.Check(err)
	if pid == 0 {
		ts.Fatalf("%s does not run", args[0])
	}
	ts.Check(kill(pid))
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
	for end := time.Now().Add(scriptPatience); syscall.Kill(pid, 0) == nil; time.Sleep(5 * time.Millisecond) {
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

// killers are the components that are kept dead, by mesh and name.
var killers sync.Map

// keepDead kills a component now, and again as often as it comes back, until
// letLive: before it can serve, also where starting a program to ask for the
// process would take longer than that.
func keepDead(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: keepdead COMPONENT")
	}
	kill9(ts, false, args)
	mesh, stopped := ts.Getenv("CULVERT_NAME"), make(chan struct{})
	client, err := laptop.NewClient(mesh)
	ts.Check(err)
	ctx, stop := context.WithCancel(context.Background())
	end := sync.OnceFunc(func() { stop(); <-stopped })
	killers.Store(mesh+"/"+args[0], end)
	ts.Defer(end)
	go func() {
		defer close(stopped)
		for run.Sleep(ctx, 2*time.Millisecond) == nil {
			if pid, err := componentOf(ctx, client, args[0]); err == nil && pid != 0 {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	}()
}

func letLive(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: letlive COMPONENT")
	}
	end, ok := killers.LoadAndDelete(ts.Getenv("CULVERT_NAME") + "/" + args[0])
	if !ok {
		ts.Fatalf("%s is not kept dead", args[0])
	}
	end.(func())()
}
