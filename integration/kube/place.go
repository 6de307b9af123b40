package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// launch runs in a place's network namespace: it moves into the place's control
// groups and starts init in new namespaces of every other kind, which there makes
// the place's groups the root of all that can be seen.
func launch(l layout, name string) error {
	if name != control {
		if err := joinGroups(prefix + name); err != nil {
			return err
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	log, err := os.Create(l.node(name, "log", "init.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(self, "init", name, l.cluster())
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = l.environment("CULVERT_KUBE="+string(l)), "/", log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true,
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC | syscall.CLONE_NEWPID | syscall.CLONE_NEWCGROUP,
	}
	return cmd.Start()
}

// initialize is the first process of a place. It never returns while all is well.
func initialize(l layout, name string) error {
	if os.Getpid() != 1 {
		return errors.New("init is for the first process of a place")
	}
	if err := syscall.Sethostname([]byte(name)); err != nil {
		return err
	}
	// What is mounted from here on is the place's own.
	if err := mounts(mount{"", "/", "", syscall.MS_REC | syscall.MS_PRIVATE, ""}, mount{"proc", "/proc", "proc", 0, ""}); err != nil {
		return err
	}
	s := &supervisor{layout: l, place: name, running: map[int]*component{}}
	if name == control {
		return s.control()
	}
	sysctls := map[string]string{"net/ipv4/ip_forward": "1", "net/ipv4/conf/all/rp_filter": "0", "net/ipv4/conf/default/rp_filter": "0"}
	if hasIPv6() {
		sysctls["net/ipv6/conf/all/forwarding"] = "1"
	}
	for file, value := range sysctls {
		if err := os.WriteFile("/proc/sys/"+file, []byte(value), 0o644); err != nil {
			return err
		}
	}
	if err := moreWatches(); err != nil {
		return err
	}
	return s.node()
}

// moreWatches raises how many inotify instances root may have, which all nodes on this
// machine share: the kernel's default is less than two clusters and their pods want.
func moreWatches() error {
	const file, enough = "/proc/sys/fs/inotify/max_user_instances", 1024
	content, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if n, err := strconv.Atoi(strings.TrimSpace(string(content))); err != nil || n >= enough {
		return err
	}
	return os.WriteFile(file, []byte(strconv.Itoa(enough)), 0o644)
}

// mount is one call of mount(2).
type mount struct {
	source, target, kind string
	flags                uintptr
	options              string
}

func mounts(all ...mount) error {
	for _, m := range all {
		if err := syscall.Mount(m.source, m.target, m.kind, m.flags, m.options); err != nil {
			return fmt.Errorf("mount %s at %s: %w", m.source, m.target, err)
		}
	}
	return nil
}

// component is a program that a place runs, again when it ends.
type component struct {
	name string
	args []string
}

// supervisor is what the first process does.
type supervisor struct {
	layout  layout
	place   string
	running map[int]*component
}

func (s *supervisor) start(name string, args ...string) error {
	return s.run(&component{name, args})
}

func (s *supervisor) run(c *component) error {
	log, err := os.OpenFile(s.layout.node(s.place, "log", c.name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	pid, err := syscall.ForkExec(s.layout.bin(c.name), append([]string{c.name}, c.args...), &syscall.ProcAttr{
		Env: os.Environ(), Files: []uintptr{0, log.Fd(), log.Fd()}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return fmt.Errorf("start %s: %w", c.name, err)
	}
	s.running[pid] = c
	return nil
}

// serve takes in what ends: the components, which are started again, and orphans.
func (s *supervisor) serve() error {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("wait for children: %w", err)
		}
		c := s.running[pid]
		if c == nil {
			continue
		}
		delete(s.running, pid)
		fmt.Printf("%s ended: exit code %d, signal %d\n", c.name, status.ExitStatus(), status.Signal())
		time.Sleep(300 * time.Millisecond)
		if err := s.run(c); err != nil {
			return err
		}
	}
}

// await tries a command until it works.
func (s *supervisor) await(name string, args ...string) error {
	for deadline := time.Now().Add(bootLimit); ; time.Sleep(50 * time.Millisecond) {
		out, err := exec.Command(s.layout.bin(name), args...).CombinedOutput()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
		}
	}
}
