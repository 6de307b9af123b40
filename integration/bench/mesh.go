package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// path is one way from the client to the server, with a small mesh of its own.
type path struct {
	name    string // column of the table
	mesh    string // culvert --name
	culvert string
	self    string // this binary, run inside the pods
	ztunnel string // "" for the relay
	extra   int    // pods on the client's node beside the client
	target  string // what the client connects to
	proxies []int  // process ids of the two proxies
	stop    []func()
}

// pods is the folder that `culvert up` reads; %s are the dataplane mode, this
// binary and again this binary.
const pods = `apiVersion: v1
kind: Namespace
metadata:
  name: bench
  labels: {istio.io/dataplane-mode: %s}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: bench}
spec:
  nodeName: node-1
  containers:
  - {name: client, image: none, command: [sleep, infinity]}
---
apiVersion: v1
kind: Pod
metadata: {name: server, namespace: bench}
spec:
  nodeName: node-2
  containers:
  - {name: server, image: none, command: [%s, server]}
`

// extraPod is one that only is there; %d is its number.
const extraPod = `---
apiVersion: v1
kind: Pod
metadata: {name: extra-%d, namespace: bench}
spec:
  nodeName: node-1
  containers:
  - {name: sleep, image: none, command: [sleep, infinity]}
`

// up brings the path's mesh up and fills in target and proxies.
func (p *path) up(ctx context.Context, dir string) error {
	mode := "none"
	if p.ztunnel != "" {
		mode = "ambient"
	}
	folder := filepath.Join(dir, p.mesh)
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	objects := fmt.Appendf(nil, pods, mode, p.self)
	for i := range p.extra {
		objects = fmt.Appendf(objects, extraPod, i)
	}
	if err := os.WriteFile(filepath.Join(folder, "pods.yaml"), objects, 0o644); err != nil {
		return err
	}
	args := []string{"up", folder, "--name", p.mesh, "--detach"}
	if p.ztunnel != "" {
		args = append(args, "--ztunnel", "node-1="+p.ztunnel, "--ztunnel", "node-2="+p.ztunnel)
	}
	p.stop = append(p.stop, func() { p.run(context.WithoutCancel(ctx), "down", "--name", p.mesh) })
	if _, err := p.run(ctx, args...); err != nil {
		return err
	}
	if p.ztunnel == "" {
		return p.startRelays(ctx)
	}
	return p.findProxies(ctx)
}

func (p *path) down() {
	for i := len(p.stop) - 1; i >= 0; i-- {
		p.stop[i]()
	}
	p.stop = nil
}

// run runs culvert to its end and returns what it printed.
func (p *path) run(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, p.culvert, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w\n%s%s", strings.Join(cmd.Args, " "), err, out, stderr.Bytes())
	}
	return out, nil
}

// state is the part of `culvert ps -o json` that we read.
type state struct {
	Pods []struct {
		Name      string   `json:"name"`
		Addresses []string `json:"addresses"`
	} `json:"pods"`
	Components []struct {
		Name string `json:"name"`
		PID  int    `json:"pid"`
	} `json:"components"`
}

func (p *path) ps(ctx context.Context) (state, error) {
	var s state
	out, err := p.run(ctx, "ps", "--name", p.mesh, "-o", "json")
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(out, &s); err != nil {
		return s, fmt.Errorf("culvert ps: %w", err)
	}
	return s, nil
}

func (s state) podIP(name string) (string, error) {
	for _, pod := range s.Pods {
		if pod.Name == name && len(pod.Addresses) > 0 {
			return pod.Addresses[0], nil
		}
	}
	return "", fmt.Errorf("culvert ps: no pod %q with an address", name)
}

func (p *path) findProxies(ctx context.Context) error {
	s, err := p.ps(ctx)
	if err != nil {
		return err
	}
	for _, c := range s.Components {
		if strings.HasPrefix(c.Name, "ztunnel-") {
			p.proxies = append(p.proxies, c.PID)
		}
	}
	if len(p.proxies) != 2 {
		return fmt.Errorf("culvert ps: %d ztunnels, want 2", len(p.proxies))
	}
	ip, err := s.podIP("server")
	p.target = ip + ":" + serverPort
	return err
}

// startRelays runs a relay in either pod, where a ztunnel would work.
func (p *path) startRelays(ctx context.Context) error {
	s, err := p.ps(ctx)
	if err != nil {
		return err
	}
	ip, err := s.podIP("server")
	if err != nil {
		return err
	}
	p.target = "127.0.0.1:9001"
	for _, r := range [][3]string{
		{"server", ip + ":9002", "127.0.0.1:" + serverPort},
		{"client", p.target, ip + ":9002"},
	} {
		if err := p.startRelay(ctx, r[0], r[1], r[2]); err != nil {
			return err
		}
	}
	return nil
}

// startRelay runs a relay that lives until its standard input ends.
func (p *path) startRelay(ctx context.Context, pod, listen, to string) error {
	args := []string{"relay", "-listen", listen, "-to", to}
	cmd := p.inPod(ctx, pod, args...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	p.stop = append(p.stop, func() { stdin.Close(); cmd.Wait() })
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != listening {
		return errors.Join(fmt.Errorf("relay in %s said %q", pod, line), err)
	}
	// A pod's processes have numbers of their own; we need the one out here.
	pid, err := findProcess(append([]string{p.self}, args...))
	if err != nil {
		return fmt.Errorf("relay in %s: %w", pod, err)
	}
	p.proxies = append(p.proxies, pid)
	return nil
}

// inPod prepares this binary to run inside a pod.
func (p *path) inPod(ctx context.Context, pod string, args ...string) *exec.Cmd {
	full := append([]string{"exec", "--name", p.mesh, "bench/" + pod, "--", p.self}, args...)
	cmd := exec.CommandContext(ctx, p.culvert, full...)
	cmd.Stderr = os.Stderr
	return cmd
}

// measure runs one round of one scenario.
func (p *path) measure(ctx context.Context, s scenario, d time.Duration) (sample, error) {
	cpu, wrote, err := p.spent()
	if err != nil {
		return sample{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, d+time.Minute)
	defer cancel()
	out, err := p.inPod(ctx, "client", "load", "-mode", s.mode, "-target", p.target,
		"-conns", strconv.Itoa(s.conns), "-duration", d.String()).Output()
	if err != nil {
		return sample{}, fmt.Errorf("%s on %s: %w", s.name, p.name, err)
	}
	var one sample
	if err := json.Unmarshal(out, &one.Result); err != nil {
		return sample{}, fmt.Errorf("%s on %s: %w", s.name, p.name, err)
	}
	cpuNow, wroteNow, err := p.spent()
	one.cpuSeconds = cpuNow - cpu
	one.written = written{wroteNow.bytes - wrote.bytes, wroteNow.calls - wrote.calls}
	return one, err
}

// spent returns what the proxies have used and written since they started.
func (p *path) spent() (cpu float64, wrote written, err error) {
	for _, pid := range p.proxies {
		s, err := cpuSeconds(pid)
		if err != nil {
			return 0, wrote, fmt.Errorf("proxy of %s: %w", p.name, err)
		}
		w, err := writtenBy(pid)
		if err != nil {
			return 0, wrote, fmt.Errorf("proxy of %s: %w", p.name, err)
		}
		cpu += s
		wrote.bytes += w.bytes
		wrote.calls += w.calls
	}
	return cpu, wrote, nil
}

func (p *path) resident() (uint64, error) { return p.sum(residentBytes) }

// sum adds up a figure of the proxies.
func (p *path) sum(bytes func(pid int) (uint64, error)) (total uint64, err error) {
	for _, pid := range p.proxies {
		n, err := bytes(pid)
		if err != nil {
			return 0, fmt.Errorf("proxy of %s: %w", p.name, err)
		}
		total += n
	}
	return total, nil
}

// measureHeld reads the proxies' memory while a load holds connections open.
func (p *path) measureHeld(ctx context.Context, mode string, conns int) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	cmd := p.inPod(ctx, "client", "load", "-mode", mode, "-target", p.target,
		"-conns", strconv.Itoa(conns), "-duration", "50s")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return 0, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil || line != "holding\n" {
		return 0, errors.Join(fmt.Errorf("%s connections on %s: load said %q", mode, p.name, line), err, cmd.Wait())
	}
	pause(ctx, settle)
	n, err := p.resident()
	stdin.Close()
	io.Copy(io.Discard, stdout)
	return n, errors.Join(err, cmd.Wait())
}
