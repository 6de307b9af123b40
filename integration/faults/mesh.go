package faults

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/culvert-mesh/culvert/cli/laptop"
	"github.com/culvert-mesh/culvert/pkg/netns"
)

// objects are what runs in the mesh under test: a client, an application of three
// replicas for new connections, and one that stays for streams.
//
//go:embed mesh.yaml
var objects string

// Mesh is a mesh of two nodes on this machine that is there to be broken.
type Mesh struct {
	Name    string
	culvert string // the program
	folder  string // of its objects
	client  *laptop.Client
	source  *netns.NS // of the client pod
	app     netip.AddrPort
	steady  netip.AddrPort
}

// Config says which mesh to start.
type Config struct {
	Culvert string   // the program
	Name    string   // of the mesh
	Dir     string   // for its objects; must exist
	Ztunnel string   // the program that Env is for; needed with Env only
	Env     []string // more environment of every ztunnel, "NAME=value"
}

// Up starts a mesh and returns when it is ready.
func Up(ctx context.Context, cfg Config) (*Mesh, error) {
	m := &Mesh{Name: cfg.Name, culvert: cfg.Culvert, folder: filepath.Join(cfg.Dir, "mesh")}
	if err := os.MkdirAll(m.folder, 0o755); err != nil {
		return nil, err
	}
	args, err := cfg.args()
	err = errors.Join(err, m.Write("namespace.yaml", inMesh), m.Write("mesh.yaml", objects))
	if err != nil {
		return nil, err
	}
	if out, err := exec.CommandContext(ctx, cfg.Culvert, append(args, m.folder)...).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("culvert up: %w\n%s", err, out)
	}
	if err := m.find(ctx); err != nil {
		return nil, errors.Join(err, m.Down())
	}
	return m, nil
}

// args are those of culvert up. A ztunnel with an environment of its own is
// started by a script that sets it.
func (cfg Config) args() ([]string, error) {
	args := []string{"up", "--detach", "--name", cfg.Name}
	if len(cfg.Env) == 0 {
		return args, nil
	}
	script := filepath.Join(cfg.Dir, "ztunnel")
	text := fmt.Sprintf("#!/bin/sh\nexec env %s %s \"$@\"\n", strings.Join(cfg.Env, " "), cfg.Ztunnel)
	for _, node := range []string{"node-1", "node-2"} {
		args = append(args, "--ztunnel", node+"="+script)
	}
	return args, os.WriteFile(script, []byte(text), 0o755)
}

// The namespace of everything, in the mesh and out of it.
const (
	outside = "apiVersion: v1\nkind: Namespace\nmetadata: {name: app}\n"
	inMesh  = "apiVersion: v1\nkind: Namespace\nmetadata: {name: app, labels: {istio.io/dataplane-mode: ambient}}\n"
)

// find looks up what the load needs of the mesh.
func (m *Mesh) find(ctx context.Context) (err error) {
	if m.client, err = laptop.NewClient(m.Name); err != nil {
		return err
	}
	st, err := m.client.Status(ctx)
	if err != nil {
		return err
	}
	for _, s := range st.Services {
		addr, err := netip.ParseAddr(s.Addrs[0])
		if err != nil {
			return err
		}
		switch s.Name {
		case "app":
			m.app = netip.AddrPortFrom(addr, 9000)
		case "steady":
			m.steady = netip.AddrPortFrom(addr, 9000)
		}
	}
	for _, p := range st.Pods {
		if p.Name == "client" {
			m.source, err = netns.Open(fmt.Sprintf("/proc/%d/ns/net", p.PID))
		}
	}
	if err == nil && (m.source == nil || !m.app.IsValid() || !m.steady.IsValid()) {
		err = errors.New("the mesh lacks its client or its services")
	}
	return err
}

// Down ends the mesh.
func (m *Mesh) Down() error {
	m.source.Close()
	if out, err := exec.Command(m.culvert, "down", "--name", m.Name).CombinedOutput(); err != nil {
		return fmt.Errorf("culvert down: %w\n%s", err, out)
	}
	return nil
}

// Write puts objects into the mesh, or replaces those of that file.
func (m *Mesh) Write(file, yaml string) error {
	path := filepath.Join(m.folder, file)
	if err := os.WriteFile(path+"~", []byte(yaml), 0o644); err != nil {
		return err
	}
	return os.Rename(path+"~", path)
}

// Remove takes the objects of a file away.
func (m *Mesh) Remove(file string) error { return os.Remove(filepath.Join(m.folder, file)) }

// Load is the load that goes through this mesh: from the client's pod, new
// connections to the application's service and streams to the one that stays.
func (m *Mesh) Load() Load {
	return Load{Connect: m.Dialer(m.app), Stream: m.Dialer(m.steady)}
}

// Dialer connects from the client's pod.
func (m *Mesh) Dialer(to netip.AddrPort) Dialer {
	return func(ctx context.Context) (net.Conn, error) {
		c, err := m.source.Dial(ctx, to, netns.DialOptions{})
		if err != nil {
			return nil, err
		}
		return c, nil
	}
}

// Restart replaces a component or a Deployment, as `culvert restart` does.
func (m *Mesh) Restart(ctx context.Context, target string) error {
	_, err := m.client.Restart(ctx, target)
	return err
}

// errNotThere says that a component has no process now.
var errNotThere = errors.New("does not run")

// Signal sends a signal to a component and returns its process's number.
func (m *Mesh) Signal(ctx context.Context, component string, sig syscall.Signal) (pid int, err error) {
	st, err := m.client.Status(ctx)
	if err != nil {
		return 0, err
	}
	for _, c := range st.Components {
		if c.Name == component {
			pid = c.PID
		}
	}
	if pid == 0 {
		return 0, fmt.Errorf("%s %w", component, errNotThere)
	}
	if err := syscall.Kill(pid, sig); err != nil {
		return pid, fmt.Errorf("%s %w: %w", component, errNotThere, err)
	}
	return pid, nil
}

// Await waits until what it asks of the mesh's status is so.
func (m *Mesh) Await(ctx context.Context, what string, ok func(*laptop.Status) bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("not in %v: %s", patience, what))
	defer cancel()
	for {
		st, err := m.client.Status(ctx)
		if err == nil && ok(st) {
			return nil
		}
		if !sleep(ctx, 20*time.Millisecond) {
			return context.Cause(ctx)
		}
	}
}

// patience is how long a mesh may take to be what it should be.
const patience = 30 * time.Second

// AwaitReady waits until everything in the mesh is ready.
func (m *Mesh) AwaitReady(ctx context.Context) error {
	return m.Await(ctx, "everything is ready", func(st *laptop.Status) bool {
		stopping := false
		for _, p := range st.Pods {
			stopping = stopping || p.Stopping
		}
		return st.Ready && !stopping
	})
}

// Log returns what the ztunnels logged of failed connections, the newest lines.
func (m *Mesh) Log() string {
	out, err := exec.Command(m.culvert, "log", "--name", m.Name).CombinedOutput()
	if err != nil {
		return err.Error()
	}
	var lines []string
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "fail") || strings.Contains(line, "error") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines[max(0, len(lines)-100):], "")
}

// sleep waits; it reports whether ctx still goes on.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
