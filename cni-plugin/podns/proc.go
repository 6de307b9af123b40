package podns

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netns"
)

// Proc finds the namespace of a pod by the processes of its containers: those in
// a control group that is named after the pod. containerd and CRI-O, with either
// driver of control groups, put the pod's UID there:
//
//	/kubepods/burstable/pod0d7b2f4e-…/4f2c…                       cgroupfs
//	/kubepods.slice/kubepods-burstable-pod0d7b2f4e_….slice/cri-…  systemd
//	/kubepods-burstable-pod0d7b2f4e_….slice:cri-containerd:4f2c…  the kubelet's is systemd, the runtime's is not
//
// Version 1 has a line for each hierarchy, version 2 one in all; who reads from inside
// another control group's namespace sees "/../" first. testdata has each.
//
// Of several namespaces the one of the oldest process is the pod's: that is the
// sandbox, which the runtime starts first and in the network that it has made;
// what a container makes for itself comes later.
type Proc struct {
	root string // of procfs

	mu      sync.Mutex
	scanned time.Time
	oldest  map[mesh.PodUID]process
}

type process struct {
	pid     int
	started uint64 // clock ticks after the machine's start
	link    string // of its network namespace, "net:[4026531840]"
}

// NewProc returns a finder that reads the procfs at root: "/proc", or where that
// of the node is mounted.
func NewProc(root string) *Proc { return &Proc{root: root} }

// rescan is how long what was seen may answer for a pod that was not.
const rescan = 100 * time.Millisecond

// Find implements Finder.
func (p *Proc) Find(uid mesh.PodUID) (*netns.NS, error) {
	found, err := p.process(uid)
	if err != nil {
		return nil, fmt.Errorf("find namespace of pod %s: %w", uid, err)
	}
	ns, err := netns.Open(filepath.Join(p.root, strconv.Itoa(found.pid), "ns", "net"))
	switch {
	case errors.Is(err, fs.ErrNotExist): // the process has ended meanwhile
		return nil, fmt.Errorf("find namespace of pod %s: %w", uid, ErrNotFound)
	case err != nil:
		return nil, fmt.Errorf("find namespace of pod %s: %w", uid, err)
	}
	return ns, nil
}

// All opens the namespaces of all pods that have processes; the caller closes them.
// Those that end meanwhile are left out.
func (p *Proc) All() ([]*netns.NS, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.scan(); err != nil {
		return nil, fmt.Errorf("find the namespaces of pods: %w", err)
	}
	var all []*netns.NS
	for _, found := range p.oldest {
		if ns, err := netns.Open(filepath.Join(p.root, strconv.Itoa(found.pid), "ns", "net")); err == nil {
			all = append(all, ns)
		}
	}
	return all, nil
}

// process returns the pod's oldest process. Looking through all processes is
// dear and a node asks for all of its pods at once, so one look serves them all.
func (p *Proc) process(uid mesh.PodUID) (process, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if found, ok := p.oldest[uid]; ok && p.current(uid, found) {
		return found, nil
	}
	if time.Since(p.scanned) > rescan || p.oldest[uid] != (process{}) {
		if err := p.scan(); err != nil {
			return process{}, err
		}
	}
	if found, ok := p.oldest[uid]; ok {
		return found, nil
	}
	return process{}, ErrNotFound
}

// current reports whether the process is still the one that was seen.
func (p *Proc) current(uid mesh.PodUID, seen process) bool {
	now, pod, err := p.look(seen.pid)
	return err == nil && pod == uid && now == seen
}

func (p *Proc) scan() error {
	entries, err := os.ReadDir(p.root)
	if err != nil {
		return err
	}
	host, err := os.Readlink(filepath.Join(p.root, "1", "ns", "net"))
	if err != nil {
		return fmt.Errorf("the node's own namespace: %w", err)
	}
	p.oldest, p.scanned = map[mesh.PodUID]process{}, time.Now()
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		one, pod, err := p.look(pid)
		if err != nil || pod == "" || one.link == host {
			continue // it has ended, or is no pod's, or the pod uses the host's network
		}
		if old, ok := p.oldest[pod]; !ok || cmp.Or(cmp.Compare(one.started, old.started), cmp.Compare(one.pid, old.pid)) < 0 {
			p.oldest[pod] = one
		}
	}
	return nil
}

// look returns what a process is; pod is "" when it is in none.
func (p *Proc) look(pid int) (one process, pod mesh.PodUID, err error) {
	dir := filepath.Join(p.root, strconv.Itoa(pid))
	groups, err := os.ReadFile(filepath.Join(dir, "cgroup"))
	if err != nil {
		return one, "", err
	}
	if pod = podOf(groups); pod == "" {
		return one, "", nil
	}
	one.pid = pid
	if one.link, err = os.Readlink(filepath.Join(dir, "ns", "net")); err != nil {
		return one, "", err
	}
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err == nil {
		one.started, err = startTime(stat)
	}
	return one, pod, err
}

// inGroup is a pod's UID in the path of a control group; systemd wants
// underscores. Static pods have a hash for a UID.
var inGroup = regexp.MustCompile(`[/-]pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12}|[0-9a-f]{32})(?:\.slice)?(?:[/:]|$)`)

// podOf returns the pod that /proc/PID/cgroup names, or "".
func podOf(groups []byte) mesh.PodUID {
	for lines := bufio.NewScanner(bytes.NewReader(groups)); lines.Scan(); {
		if m := inGroup.FindSubmatch(lines.Bytes()); m != nil {
			return mesh.PodUID(strings.ReplaceAll(string(m[1]), "_", "-"))
		}
	}
	return ""
}

// startTime reads field 22 of /proc/PID/stat (proc_pid_stat(5)). The program's
// name before it may contain anything.
func startTime(stat []byte) (uint64, error) {
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 20 {
		return 0, fmt.Errorf("stat %q is too short", stat)
	}
	return strconv.ParseUint(string(fields[19]), 10, 64)
}
