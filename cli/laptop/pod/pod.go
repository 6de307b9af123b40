// Package pod runs the process of a pod on the laptop cluster the way a
// container runtime would: in the pod's network namespace, in process, mount and
// host-name namespaces of its own, with the cluster's resolv.conf and hosts.
//
//	culvert up ──fork in the pod's netns──▶ culvert component pod-init   (process 1 of its namespace)
//	                                           │ mounts /etc/resolv.conf, /etc/hosts, /proc
//	                                           ▼ exec
//	                                        the container's command
//
// Killing process 1 ends every process of the pod, and so does the end of
// `culvert up`. Files are the machine's own: a pod sees what its user sees.
//
// A Process is safe for concurrent use.
package pod

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/culvert-mesh/culvert/cli/laptop/spawn"
	"github.com/culvert-mesh/culvert/pkg/netns"
)

// Spec is what to run, and where.
type Spec struct {
	Hostname string
	Command  []string // the program is looked up in PATH of Env
	Env      []string
	Dir      string // the working directory; "" = /
	Etc      string // the folder with this pod's resolv.conf and hosts
	Hide     string // mounts below this folder are not the pod's business
	NS       *netns.NS
	Output   io.Writer // standard output and error
	Self     string    // the culvert binary
	Spawner  *spawn.Spawner
}

// Process is a pod's running process.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

// Start starts the process. It returns when the command runs, with everything
// mounted, or with the error that kept it from running.
func Start(s Spec) (*Process, error) {
	told, tell, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer told.Close()
	defer tell.Close()
	args := []string{"component", "pod-init", "--hostname", s.Hostname, "--etc", s.Etc, "--hide", s.Hide, "--"}
	cmd := exec.Command(s.Self, append(args, s.Command...)...)
	cmd.Env = s.Env
	cmd.Dir = s.Dir
	if cmd.Dir == "" {
		cmd.Dir = "/"
	}
	cmd.Stdout, cmd.Stderr = s.Output, s.Output
	cmd.ExtraFiles = []*os.File{tell} // initPipe
	cmd.WaitDelay = time.Second       // a descendant that outlived process 1 cannot hold the pipe for ever
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS,
		Setpgid:    true,
	}
	if err := s.Spawner.Start(s.NS, cmd); err != nil {
		return nil, fmt.Errorf("start pod %s: %w", s.Hostname, err)
	}
	p := &Process{cmd: cmd, done: make(chan struct{})}
	go p.wait()
	tell.Close()
	if failure, _ := io.ReadAll(told); len(failure) > 0 {
		<-p.done
		return nil, fmt.Errorf("start pod %s: %s", s.Hostname, failure)
	}
	return p, nil
}

func (p *Process) wait() {
	defer close(p.done)
	err := p.cmd.Wait()
	if !errors.Is(err, exec.ErrWaitDelay) {
		p.err = err
	}
}

// PID returns the number of the pod's process 1 as the machine sees it.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Exit returns how the process ended: its exit status and a text such as "exit
// status 1" or "signal: killed". It must be called after Done.
func (p *Process) Exit() (status int, text string) {
	state := p.cmd.ProcessState
	if state == nil {
		return -1, fmt.Sprint(p.err)
	}
	return state.ExitCode(), state.String()
}

// Terminate asks the process to end and kills it after the grace period. It
// returns when the process is gone.
func (p *Process) Terminate(grace time.Duration) {
	if grace > 0 {
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-p.done:
			return
		case <-time.After(grace):
		}
	}
	_ = p.cmd.Process.Kill()
	<-p.done
}

// Kill kills the process without asking.
func (p *Process) Kill() { _ = p.cmd.Process.Kill() }

// WriteEtc writes a pod's resolv.conf and hosts into dir.
func WriteEtc(dir, hostname, namespace, domain string, nameservers, addrs []string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var resolv, hosts strings.Builder
	for _, n := range nameservers {
		fmt.Fprintf(&resolv, "nameserver %s\n", n)
	}
	fmt.Fprintf(&resolv, "search %[1]s.svc.%[2]s svc.%[2]s %[2]s\noptions ndots:5 timeout:2\n", namespace, domain)
	hosts.WriteString("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n")
	for _, a := range addrs {
		fmt.Fprintf(&hosts, "%s %s\n", a, hostname)
	}
	if err := os.WriteFile(filepath.Join(dir, "resolv.conf"), []byte(resolv.String()), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "hosts"), []byte(hosts.String()), 0o644)
}
