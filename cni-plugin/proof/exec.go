package proof

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/pkg/run"
)

// nodeExec runs CNI plugins as the container runtime does: with the node's files
// around them, whatever the agent itself sees. It implements invoke.Exec.
type nodeExec struct {
	proc string // the node's procfs
	version.PluginDecoder
}

var _ invoke.Exec = (*nodeExec)(nil)

// FindInPath implements invoke.Exec.
func (e *nodeExec) FindInPath(plugin string, dirs []string) (string, error) {
	if plugin == "" || strings.Contains(plugin, "/") {
		return "", fmt.Errorf("plugin name %q", plugin)
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, plugin)
		if st, err := os.Stat(filepath.Join(e.proc, "1", "root", path)); err == nil && st.Mode().IsRegular() {
			return path, nil
		}
	}
	return "", fmt.Errorf("program %s is not in %s", plugin, strings.Join(dirs, ", "))
}

// ExecPlugin implements invoke.Exec.
func (e *nodeExec) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, path)
	cmd.Dir = "/"
	cmd.Env = append(nodeEnvironment(environ), "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/libexec/iptables")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &stdout, &stderr
	if err := e.start(cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", path, err)
	}
	if err := cmd.Wait(); err != nil {
		return nil, pluginError(filepath.Base(path), err, stdout.Bytes(), stderr.Bytes())
	}
	return stdout.Bytes(), nil
}

// nodeEnvironment is what the protocol passes on, and nothing of the agent's own.
func nodeEnvironment(environ []string) (kept []string) {
	for _, v := range environ {
		if strings.HasPrefix(v, "CNI_") {
			kept = append(kept, v)
		}
	}
	return kept
}

// start starts cmd in the node's mounts, from a thread that has moved there and ends.
// Only /proc is ours: in the node's a process of a container would not find itself.
func (e *nodeExec) start(cmd *exec.Cmd) error {
	done := make(chan error, 1)
	run.OwnThread(func() {
		done <- func() error {
			mounts, err := os.Open(filepath.Join(e.proc, "1", "ns", "mnt"))
			if err != nil {
				return err
			}
			defer mounts.Close()
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return fmt.Errorf("unshare: %w", err)
			}
			if err := unix.Setns(int(mounts.Fd()), unix.CLONE_NEWNS); err != nil {
				return fmt.Errorf("enter the node's mounts: %w (is CAP_SYS_CHROOT there?)", err)
			}
			if err := ownProc(); err != nil {
				return fmt.Errorf("show a plugin its processes: %w", err)
			}
			return cmd.Start()
		}()
	})
	return <-done
}

// ownProc gives the thread a copy of the mounts that it is in, with the procfs of the
// process's own numbers at /proc. The node sees nothing of it, and the copy goes with
// the last process that is in it.
func ownProc() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return err
	}
	return unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
}

// pluginError is what a plugin says on standard output when it fails.
func pluginError(name string, err error, stdout, stderr []byte) error {
	var said types.Error
	if json.Unmarshal(stdout, &said) == nil && (said.Msg != "" || said.Details != "") {
		return fmt.Errorf("%s: %w", name, &said)
	}
	if text := strings.TrimSpace(string(stderr)); text != "" {
		return fmt.Errorf("%s: %w", name, errors.New(text))
	}
	return fmt.Errorf("%s: %w", name, err)
}
