package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Time limits. A boot takes four seconds on an idle machine.
const (
	bootLimit = 6 * time.Minute
	downLimit = 2 * time.Minute
)

// settings are variables that shape the cluster, and their values.
var settings = map[string][]string{"PROXY_MODE": {"nftables", "iptables"}, "CNI": {"bridge", "ptp", "flannel"}, "FAMILY": {"ipv4", "dual", "ipv6"}}

//go:embed system.yaml
var system string

// up brings the cluster up. One that is up already stays as it is.
func up(ctx context.Context, l layout) error {
	if isUp(l) {
		fmt.Println("kube: the cluster is up already")
		return nil
	}
	if err := require(toRun); err != nil {
		return err
	}
	if hasIPv6() && cniKind() == "flannel" {
		return errors.New("CNI=flannel is with FAMILY=ipv4 only")
	}
	for variable, values := range settings {
		if v := os.Getenv(variable); v != "" && !slices.Contains(values, v) {
			return fmt.Errorf("%s=%s: want one of %s", variable, v, strings.Join(values, ", "))
		}
	}
	start := time.Now()
	if err := build(ctx, l); err != nil {
		return err
	}
	stage(start, "programs and images are there")
	if err := down(l); err != nil {
		return fmt.Errorf("clean up after an earlier cluster: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	err := boot(ctx, l, start)
	if err == nil {
		err = os.WriteFile(l.up(), nil, 0o644)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("%w (logs are below %s)", err, l.cluster()), ctx.Err())
	}
	fmt.Printf("kube: up; export KUBECONFIG=%s\n", l.kubeconfig("admin"))
	return nil
}

func stage(start time.Time, what string) {
	fmt.Printf("kube: %5.1f s  %s\n", time.Since(start).Seconds(), what)
}

func boot(ctx context.Context, l layout, start time.Time) error {
	if err := writePKI(l); err != nil {
		return err
	}
	if err := layNetwork(ctx); err != nil {
		return err
	}
	for _, p := range places() {
		if err := start1(l, p); err != nil {
			return fmt.Errorf("start %s: %w", p.name, err)
		}
	}
	stage(start, "started")
	api, err := newClient(l)
	if err != nil {
		return err
	}
	if err := until(ctx, "the API server is ready", func() error { return api.get(ctx, "/readyz", nil) }); err != nil {
		return err
	}
	stage(start, "API server ready")
	if err := until(ctx, "the cluster's own objects are made", func() error {
		return api.apply(ctx, strings.ReplaceAll(system, "DNS_IP", strconv.Quote(inFamily(dnsIP, dnsIP6)[0])))
	}); err != nil {
		return err
	}
	if cniKind() == "flannel" {
		if err := bootFlannel(ctx, api); err != nil {
			return err
		}
	}
	for _, n := range nodes {
		if err := until(ctx, n+" is ready", func() error { return api.nodeReady(ctx, n) }); err != nil {
			return err
		}
	}
	// Pods are refused until there is an account for them to run as.
	err = until(ctx, "the default service account is made", func() error {
		return api.get(ctx, "/api/v1/namespaces/default/serviceaccounts/default", nil)
	})
	stage(start, "nodes ready")
	return err
}

// until tries again until it works or ctx ends.
func until(ctx context.Context, what string, try func() error) error {
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait until %s: %w", what, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// start1 starts a place: `launch` in its network, which puts itself into its
// control groups and starts `init` in its other namespaces.
func start1(l layout, p place) error {
	if err := os.MkdirAll(l.node(p.name, "log"), 0o755); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	out, err := exec.Command("nsenter", "--net=/run/netns/"+prefix+p.name, self, "launch", p.name).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// ip runs commands of ip(8).
func ip(ctx context.Context, lines ...string) error {
	cmd := exec.CommandContext(ctx, "ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(lines, "\n"))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip: %w: %s", err, out)
	}
	return nil
}

// layNetwork joins the places by a bridge. Everybody reaches pods through their
// nodes, and services through the first node's kube-proxy.
func layNetwork(ctx context.Context) error {
	lines := []string{
		"link add " + bridge + " type bridge",
		"addr add " + bridgeIP + "/24 dev " + bridge,
		"link set " + bridge + " up",
	}
	if hasIPv6() {
		lines = append(lines, "addr add "+network6+"1/64 dev "+bridge+" nodad")
	}
	for _, p := range places() {
		lines = append(lines,
			"netns add "+prefix+p.name,
			"link add "+prefix+p.name+" type veth peer name eth0 netns "+prefix+p.name,
			"link set "+prefix+p.name+" master "+bridge+" up",
		)
	}
	if err := ip(ctx, append(lines, routes("")...)...); err != nil {
		return err
	}
	for _, p := range places() {
		inside := []string{
			"link set lo up",
			"addr add " + p.ip + "/24 dev eth0",
			"link set eth0 up",
			"route add default via " + bridgeIP,
		}
		if hasIPv6() {
			inside = append(inside, "addr add "+p.ip6+"/64 dev eth0 nodad", "route add default via "+network6+"1")
		}
		cmd := exec.CommandContext(ctx, "ip", "-netns", prefix+p.name, "-batch", "-")
		cmd.Stdin = strings.NewReader(strings.Join(append(inside, routes(p.name)...), "\n"))
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("network of %s: %w: %s", p.name, err, out)
		}
	}
	return nil
}

// routes of the machine ("") or of a place to everybody else's pods, and, where no
// kube-proxy is, to services. From node to node flannel has its own.
func routes(of string) []string {
	overlay := cniKind() == "flannel" && slices.Contains(nodes, of)
	var lines []string
	for _, p := range places() {
		if p.pods != "" && p.name != of && !overlay {
			lines = append(lines, "route replace "+p.pods+" via "+p.ip)
			if hasIPv6() {
				lines = append(lines, "route replace "+p.pods6+" via "+p.ip6)
			}
		}
	}
	if of == "" || of == control {
		lines = append(lines, "route replace "+services+" via "+placeOf(nodes[0]).ip)
		if hasIPv6() {
			lines = append(lines, "route replace "+services6+" via "+placeOf(nodes[0]).ip6)
		}
	}
	return lines
}

// isUp reports whether a whole cluster runs.
func isUp(l layout) bool {
	if _, err := os.Stat(l.up()); err != nil {
		return false
	}
	for _, p := range places() {
		if _, err := firstProcess(l, p.name); err != nil {
			return false
		}
	}
	return true
}

// firstProcess finds the `init` of a place: its process id, seen from here.
func firstProcess(l layout, name string) (int, error) {
	want := "\x00init\x00" + name + "\x00" + l.cluster() + "\x00"
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		line, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err == nil && strings.HasSuffix(string(line), want) && isFirst(pid) {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("%s does not run: `make cluster` starts it", name)
}

// isFirst reports whether a process is the first of a process namespace below ours.
func isFirst(pid int) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(status)) {
		if ids, ok := strings.CutPrefix(line, "NSpid:"); ok {
			f := strings.Fields(ids)
			return len(f) > 1 && f[len(f)-1] == "1"
		}
	}
	return false
}

// down ends the cluster, or what is left of one, however many nodes it had.
func down(l layout) error {
	for _, name := range everyPlace() {
		if pid, err := firstProcess(l, name); err == nil {
			if err := end(pid); err != nil {
				return fmt.Errorf("end %s: %w", name, err)
			}
		}
	}
	var errs []error
	for _, name := range everyPlace() {
		// The kernel takes a namespace down later than it says.
		if _, err := os.Stat("/sys/class/net/" + prefix + name); err == nil {
			errs = append(errs, command("ip", "link", "del", prefix+name))
		}
		if _, err := os.Stat("/run/netns/" + prefix + name); err == nil {
			errs = append(errs, command("ip", "netns", "del", prefix+name))
		}
		errs = append(errs, removeGroups(prefix+name))
	}
	if _, err := os.Stat("/sys/class/net/" + bridge); err == nil {
		errs = append(errs, command("ip", "link", "del", bridge)) // and with it the routes through it
	}
	return errors.Join(append(errs, os.RemoveAll(l.cluster()))...)
}

func command(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// end kills the first process of a place, and waits until all of its processes
// are gone: it becomes a zombie, or vanishes, only after them.
func end(pid int) error {
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	for deadline := time.Now().Add(downLimit); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return nil
		}
		if _, rest, ok := strings.Cut(string(stat), ") "); ok && strings.ContainsAny(rest[:1], "ZX") {
			return nil
		}
	}
	return fmt.Errorf("process %d is still there after %s", pid, downLimit)
}
