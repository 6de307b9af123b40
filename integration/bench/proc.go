package main

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// clockTick is USER_HZ, which Linux fixes at 100 for every architecture that Go
// supports.
const clockTick = 100

// cpuSeconds returns the user and system time that a process has used.
func cpuSeconds(pid int) (float64, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The command name may hold anything; fields count from its closing bracket.
	_, rest, ok := bytes.Cut(stat, []byte(") "))
	fields := strings.Fields(string(rest))
	if !ok || len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat: unexpected form", pid)
	}
	user, err1 := strconv.ParseFloat(fields[11], 64)
	system, err2 := strconv.ParseFloat(fields[12], 64)
	if err1 != nil || err2 != nil {
		return 0, fmt.Errorf("/proc/%d/stat: unexpected form", pid)
	}
	return (user + system) / clockTick, nil
}

// written is what a process has written so far, to files and sockets; what a kernel
// splices is not among it.
type written struct{ bytes, calls uint64 }

// writtenBy reads a process's account of what it has written.
func writtenBy(pid int) (w written, err error) {
	name := fmt.Sprintf("/proc/%d/io", pid)
	account, err := os.ReadFile(name)
	if err != nil {
		return w, err
	}
	for line := range strings.Lines(string(account)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		into := map[string]*uint64{"wchar": &w.bytes, "syscw": &w.calls}[key]
		if into == nil {
			continue
		}
		if *into, err = strconv.ParseUint(value, 10, 64); err != nil {
			return w, fmt.Errorf("%s: unexpected form", name)
		}
	}
	return w, nil
}

// residentBytes returns the memory that a process holds (VmRSS), with the files that
// it has mapped.
func residentBytes(pid int) (uint64, error) { return statusBytes(pid, "VmRSS:") }

// ownBytes is residentBytes without files, which belong to all who map them (RssAnon).
func ownBytes(pid int) (uint64, error) { return statusBytes(pid, "RssAnon:") }

// statusBytes reads a line of /proc/PID/status that counts kilobytes.
func statusBytes(pid int, key string) (uint64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if v, ok := strings.CutPrefix(line, key); ok {
			kb, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(v), " kB"), 10, 64)
			return kb << 10, err
		}
	}
	return 0, fmt.Errorf("/proc/%d/status: no %s", pid, key)
}

// findProcess returns the process that was started with exactly these arguments.
func findProcess(args []string) (int, error) {
	want := strings.Join(args, "\x00") + "\x00"
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if cmdline, err := os.ReadFile("/proc/" + e.Name() + "/cmdline"); err == nil && string(cmdline) == want {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("no process was started as %q", strings.Join(args, " "))
}

// moreConnections lets this namespace make connections for as long as a run
// lasts: by default 28,000 ports, each kept back for a minute, are used up within
// seconds, and what is measured from then on is the search for a free one.
func moreConnections() error {
	for name, value := range map[string]string{"ip_local_port_range": "1024 65000", "tcp_tw_reuse": "1"} {
		if err := os.WriteFile("/proc/sys/net/ipv4/"+name, []byte(value), 0); err != nil {
			return fmt.Errorf("prepare namespace for many connections: %w", err)
		}
	}
	return nil
}
