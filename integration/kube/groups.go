package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A node gets control groups of its own, below which its kubelet and runc make those
// of pods. Of version 1 that is a group in each hierarchy, of version 2 in the one:
//
//	version 1   /sys/fs/cgroup/{cpu,memory,…}/ckube0-node1/kubepods/…
//	version 2   /sys/fs/cgroup/ckube0-node1/{init,kubepods/…}
//
// In version 2 a group that hands controllers down may have no processes itself, so
// that the node's programs are in init. Whichever version the machine's kernel has its
// controllers in, kubelet and runc find by what is mounted; who writes the groups is
// the kubelet in both (cgroupDriver cgroupfs): there is no systemd in a node.
const (
	groupRoot = "/sys/fs/cgroup"
	ownLeaf   = "init"
	groupTry  = 20 * time.Millisecond // the kernel lets go of ended processes a moment after they are gone
	groupWait = 10 * time.Second
)

// unified reports whether this machine's controllers are in version 2.
func unified() bool {
	_, err := os.Stat(filepath.Join(groupRoot, "cgroup.controllers"))
	return err == nil
}

// hierarchies are the folders of a machine's hierarchies below groupRoot: "" is the one
// of version 2.
func hierarchies() ([]string, error) {
	if unified() {
		return []string{""}, nil
	}
	var found []string
	for _, h := range []string{"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "systemd"} {
		if _, err := os.Stat(filepath.Join(groupRoot, h, "cgroup.procs")); err == nil {
			found = append(found, h)
		}
	}
	if !slices.Contains(found, "memory") {
		return nil, fmt.Errorf("no control groups are mounted below %s: neither version 2 nor version 1 with memory", groupRoot)
	}
	return found, nil
}

// joinGroups moves this process into the groups of a place.
func joinGroups(name string) error {
	found, err := hierarchies()
	if err != nil {
		return err
	}
	if unified() {
		if err := handDown(groupRoot); err != nil {
			return err
		}
	}
	for _, h := range found {
		if err := joinGroup(h, name); err != nil {
			return fmt.Errorf("control group %s: %w", h, err)
		}
	}
	return nil
}

func joinGroup(hierarchy, name string) error {
	dir := filepath.Join(groupRoot, hierarchy, name)
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if hierarchy == "cpuset" { // a new one is empty, and so are those below it unless told otherwise
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			content, err := os.ReadFile(filepath.Join(groupRoot, hierarchy, file))
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, file), content, 0o644)
			}
			if err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.clone_children"), []byte("1"), 0o644); err != nil {
			return err
		}
	}
	return move(dir, os.Getpid())
}

func move(group string, pid int) error {
	return os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o644)
}

// mountGroups shows a node its own control groups alone, in a new namespace of them.
func mountGroups() error {
	found, err := hierarchies()
	if err != nil {
		return err
	}
	two := unified()
	// What /sys shows of the network is that of whoever mounts it.
	if err := mounts(mount{"sysfs", "/sys", "sysfs", 0, ""}); err != nil {
		return err
	}
	if two {
		if err := mounts(mount{"cgroup2", groupRoot, "cgroup2", 0, ""}); err != nil {
			return err
		}
		return handDown(groupRoot)
	}
	if err := mounts(mount{"tmpfs", groupRoot, "tmpfs", 0, "mode=755"}); err != nil {
		return err
	}
	for _, h := range found {
		dir := filepath.Join(groupRoot, h)
		options := h
		if h == "systemd" {
			options = "none,name=systemd"
		}
		if err := errors.Join(os.Mkdir(dir, 0o755), mounts(mount{"cgroup", dir, "cgroup", 0, options})); err != nil {
			return err
		}
	}
	return nil
}

// handDown has a group of version 2 hand all of its controllers to those below it.
// Unless the group is the machine's first, its processes move to a group below it.
func handDown(group string) error {
	content, err := os.ReadFile(filepath.Join(group, "cgroup.controllers"))
	if err != nil {
		return err
	}
	have, err := os.ReadFile(filepath.Join(group, "cgroup.subtree_control"))
	if err != nil {
		return err
	}
	var wanted []string
	for _, controller := range strings.Fields(string(content)) {
		if !slices.Contains(strings.Fields(string(have)), controller) {
			wanted = append(wanted, "+"+controller)
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	write := func() error {
		return os.WriteFile(filepath.Join(group, "cgroup.subtree_control"), []byte(strings.Join(wanted, " ")), 0o644)
	}
	// Who started us may be in the group as well, a moment longer.
	for deadline := time.Now().Add(groupWait); ; time.Sleep(groupTry) {
		err := write()
		if !errors.Is(err, syscall.EBUSY) || time.Now().After(deadline) {
			return err
		}
		if err := empty(group); err != nil {
			return err
		}
	}
}

// empty moves a group's processes to its leaf. One that has ended meanwhile is gone too.
func empty(group string) error {
	leaf := filepath.Join(group, ownLeaf)
	if err := os.Mkdir(leaf, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	content, err := os.ReadFile(filepath.Join(group, "cgroup.procs"))
	if err != nil {
		return err
	}
	for _, field := range strings.Fields(string(content)) {
		pid, err := strconv.Atoi(field)
		if err != nil || pid == 0 { // 0 is a process of another namespace
			continue
		}
		if err := move(leaf, pid); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("move process %d to %s: %w", pid, leaf, err)
		}
	}
	return nil
}

// removeGroups removes a place's control groups, the innermost first.
func removeGroups(name string) error {
	var found []string
	for _, pattern := range []string{filepath.Join(groupRoot, name), filepath.Join(groupRoot, "*", name)} {
		dirs, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		found = append(found, dirs...)
	}
	for _, top := range found {
		var dirs []string
		err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil // what vanishes meanwhile is no harm
		})
		if err != nil {
			return err
		}
		for _, dir := range slices.Backward(dirs) {
			if err := rmdir(dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// rmdir removes a control group.
func rmdir(dir string) error {
	for deadline := time.Now().Add(groupWait); ; time.Sleep(groupTry) {
		err := syscall.Rmdir(dir)
		if err == nil || errors.Is(err, syscall.ENOENT) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("remove control group %s: %w", dir, err)
		}
	}
}
