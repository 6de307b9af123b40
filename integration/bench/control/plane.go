package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/culvert-mesh/culvert/pkg/wire/authz"
	"github.com/culvert-mesh/culvert/pkg/wire/workload"
	"github.com/culvert-mesh/culvert/pkg/xds"
)

// plane is the control plane's process.
type plane struct {
	o     options
	cmd   *exec.Cmd
	state string
	ports [4]int // xDS, admin, readiness, metrics
}

// startPlane starts the control plane and waits until it is ready.
func startPlane(ctx context.Context, o options, state string) (*plane, error) {
	p := &plane{o: o, state: state}
	for i := range p.ports {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		p.ports[i] = ln.Addr().(*net.TCPAddr).Port
		_ = ln.Close()
	}
	took, err := p.start(ctx)
	if err != nil {
		return nil, err
	}
	fmt.Printf("control plane ready %.1f s after its start\n", took.Seconds())
	return p, nil
}

// start starts a process and returns how long it took to become ready.
func (p *plane) start(ctx context.Context) (time.Duration, error) {
	listen := func(i int) string { return fmt.Sprintf("127.0.0.1:%d", p.ports[i]) }
	p.cmd = exec.Command(p.o.program, "--kube", "--kubeconfig="+p.o.kubeconfig, "--state="+p.state, "--namespace="+meshNamespace,
		"--trust-bundle=false", "--gateway-controller=false", "--webhook-listen=", "--drain=0", "--ip=127.0.0.1",
		"--xds-listen="+listen(0), "--admin-listen="+listen(1), "--ready-listen="+listen(2), "--metrics-listen="+listen(3), "--log-level=warn")
	p.cmd.Stderr, p.cmd.Stdout = os.Stderr, os.Stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	began := time.Now()
	if err := p.cmd.Start(); err != nil {
		return 0, err
	}
	for {
		resp, err := http.Get("http://" + listen(2) + "/healthz/ready")
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				break
			}
		}
		if ctx.Err() != nil || time.Since(began) > time.Minute {
			p.stop()
			return 0, errors.New("the control plane does not become ready")
		}
		time.Sleep(20 * time.Millisecond)
	}
	return time.Since(began), nil
}

// replace ends the process and starts another one in its place, as good as another
// replica: it knows nothing of the clients.
func (p *plane) replace(ctx context.Context) error {
	p.stop()
	_, err := p.start(ctx)
	return err
}

// settled waits until n clients have accepted all that there is of two types.
func (p *plane) settled(ctx context.Context, n int) error {
	for deadline := time.Now().Add(time.Minute); ; {
		var report struct {
			Proxies []struct {
				Types map[string]struct{ Synced bool }
			}
		}
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/debug/status", p.ports[1]))
		if err == nil {
			err = json.NewDecoder(resp.Body).Decode(&report)
			_ = resp.Body.Close()
		}
		count := 0
		for _, proxy := range report.Proxies {
			if len(proxy.Types) == 2 && proxy.Types[workload.TypeURL].Synced && proxy.Types[authz.TypeURL].Synced {
				count++
			}
		}
		if err == nil && count == n {
			return nil
		}
		if ctx.Err() != nil || time.Now().After(deadline) {
			return fmt.Errorf("%d of %d clients are up to date: %w", count, n, errors.Join(ctx.Err(), err))
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (p *plane) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	_ = p.cmd.Wait()
}

// memory returns resident and highest resident memory, in MB.
func (p *plane) memory() (now, peak float64) {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		kb, _ := strconv.ParseFloat(f[1], 64)
		switch f[0] {
		case "VmRSS:":
			now = kb / 1024
		case "VmHWM:":
			peak = kb / 1024
		}
	}
	return now, peak
}

// cpu returns the processor time used so far.
func (p *plane) cpu() time.Duration {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	_, rest, _ := strings.Cut(string(text), ") ")
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

// profileTime is how long a processor profile is taken.
const profileTime = 3 * time.Second

// profile begins to take profiles of the control plane, and returns what waits for
// them. Without a folder there are none.
func (p *plane) profile(dir, name string) (wait func() error) {
	if dir == "" {
		return func() error { return nil }
	}
	taken := make(chan error, 1)
	go func() {
		taken <- errors.Join(
			p.fetch(fmt.Sprintf("profile?seconds=%.0f", profileTime.Seconds()), filepath.Join(dir, name+".cpu")),
			p.fetch("allocs", filepath.Join(dir, name+".allocs")))
	}()
	return func() error { return <-taken }
}

// fetch writes a profile to a file.
func (p *plane) fetch(what, file string) error {
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/debug/pprof/%s", p.ports[1], what))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("profile: %w", err)
	}
	return os.WriteFile(file, b, 0o644)
}

// fleet is clients that subscribe as ztunnels do.
type fleet struct {
	clients []*xds.Client
	cancel  context.CancelFunc
	wg      sync.WaitGroup

	mu       sync.Mutex
	awaited  string // the resource whose arrival is measured
	arrivals []time.Time
	came     chan struct{} // closed when all have it
	received int           // resources, by all clients
}

// connect starts n clients.
func (p *plane) connect(ctx context.Context, n int, token string) (*fleet, error) {
	ctx, cancel := context.WithCancel(ctx)
	f := &fleet{cancel: cancel}
	pem, err := os.ReadFile(filepath.Join(p.state, "root-cert.pem"))
	if err != nil {
		cancel()
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	for i := range n {
		pod := fmt.Sprint("ztunnel-", i)
		c, err := xds.NewClient(xds.Config{
			Address:      fmt.Sprintf("https://127.0.0.1:%d", p.ports[0]),
			Roots:        func() (*x509.CertPool, error) { return roots, nil },
			NodeID:       xds.NodeID("ztunnel", netip.MustParseAddr("127.0.0.1"), pod, meshNamespace, "cluster.local"),
			NodeMetadata: map[string]any{"NAMESPACE": meshNamespace, "SERVICE_ACCOUNT": "ztunnel", "NODE_NAME": nodeName(i)},
			Token:        func() (string, error) { return token, nil },
			Types: []xds.Subscription{
				{TypeURL: workload.TypeURL, Wildcard: true, Handle: f.handle},
				{TypeURL: authz.TypeURL, Wildcard: true, Handle: f.handle},
			},
			Log: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			cancel()
			return nil, err
		}
		f.clients = append(f.clients, c)
	}
	for _, c := range f.clients {
		f.wg.Go(func() { _ = c.Run(ctx) })
	}
	return f, nil
}

func (f *fleet) stop() {
	f.cancel()
	f.wg.Wait()
}

// synced waits until every client has a first snapshot.
func (f *fleet) synced(ctx context.Context) error {
	for _, c := range f.clients {
		select {
		case <-c.FirstSnapshot():
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (f *fleet) handle(added []xds.Resource, _ []string) []xds.Rejected {
	now := time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.received += len(added)
	for _, r := range added {
		if r.Name == f.awaited && len(f.arrivals) < len(f.clients) {
			if f.arrivals = append(f.arrivals, now); len(f.arrivals) == len(f.clients) {
				close(f.came)
			}
		}
	}
	return nil
}

// count returns how many resources all clients together have received.
func (f *fleet) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.received
}

// await begins to wait for a resource at all clients.
func (f *fleet) await(name string) <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.awaited, f.arrivals, f.came = name, nil, make(chan struct{})
	return f.came
}

// since returns how long after then it arrived at each client.
func (f *fleet) since(then time.Time) []time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []time.Duration
	for _, t := range f.arrivals {
		out = append(out, max(0, t.Sub(then)))
	}
	return out
}
