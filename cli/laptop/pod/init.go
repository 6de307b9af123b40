package pod

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// initPipe is the descriptor on which pod-init tells its starter what went wrong.
// It closes when the command is executed: the end of an empty pipe is success.
const initPipe = 3

// Init is what process 1 of a pod does before it becomes the container's
// command. It returns only with an error.
func Init(args, environ []string) error {
	unix.CloseOnExec(initPipe)
	err := become(args, environ)
	_, _ = unix.Write(initPipe, []byte(err.Error()))
	return err
}

func become(args, environ []string) error {
	fs := flag.NewFlagSet("pod-init", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	hostname := fs.String("hostname", "", "host name of the pod")
	etc := fs.String("etc", "", "folder with resolv.conf and hosts")
	hide := fs.String("hide", "", "folder whose mounts are dropped")
	if err := fs.Parse(args); err != nil {
		return fmt.Errorf("pod-init: %w", err)
	}
	if fs.NArg() == 0 {
		return errors.New("pod-init: no command")
	}
	if err := furnish(*hostname, *etc, *hide); err != nil {
		return fmt.Errorf("pod-init: %w", err)
	}
	path, err := lookPath(fs.Arg(0), environ)
	if err != nil {
		return fmt.Errorf("pod-init: %w", err)
	}
	return fmt.Errorf("pod-init: exec %s: %w", path, syscall.Exec(path, fs.Args(), environ))
}

// furnish makes the namespaces that the process was born into a pod's.
func furnish(hostname, etc, hide string) error {
	if err := unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := dropMounts(hide); err != nil {
		return err
	}
	for _, name := range []string{"resolv.conf", "hosts"} {
		target := filepath.Join("/etc", name)
		if err := unix.Mount(filepath.Join(etc, name), target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount the pod's %s: %w (does the file exist?)", target, err)
		}
	}
	if err := unix.Sethostname([]byte(hostname)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	return nil
}

// dropMounts unmounts everything below dir. The mesh mounts namespaces there: a
// pod that held copies of those mounts would keep its dead neighbours' alive.
func dropMounts(dir string) error {
	if dir == "" {
		return nil
	}
	points, err := MountsBelow(dir)
	if err != nil {
		return err
	}
	for _, p := range points {
		if err := unix.Unmount(p, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unmount %s: %w", p, err)
		}
	}
	return nil
}

// MountsBelow returns the mount points below dir, the newest first.
func MountsBelow(dir string) ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var points []string
	for s := bufio.NewScanner(f); s.Scan(); {
		fields := strings.Fields(s.Text())
		if len(fields) < 5 {
			continue
		}
		point := unescape(fields[4])
		if strings.HasPrefix(point, dir+"/") {
			points = append([]string{point}, points...)
		}
	}
	return points, nil
}

// unescape undoes the octal escapes of mountinfo (proc_pid_mountinfo(5)).
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// lookPath finds a program in the PATH of environ.
func lookPath(name string, environ []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for _, dir := range filepath.SplitList(Getenv(environ, "PATH")) {
		path := filepath.Join(dir, name)
		if st, err := os.Stat(path); err == nil && !st.IsDir() && st.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s: %w", name, exec.ErrNotFound)
}

// Getenv returns the last value of name in environ.
func Getenv(environ []string, name string) string {
	value := ""
	for _, e := range environ {
		if k, v, ok := strings.Cut(e, "="); ok && k == name {
			value = v
		}
	}
	return value
}
