// Package laptop runs a whole mesh on one machine: it is the small cluster that
// the mesh's programs run on, and it starts those programs.
//
//	folder of YAML ─▶ cluster (decides) ─▶ kubelets (pods) ─▶ fabric (namespaces, links)
//	                      │  ▲                  │
//	                      │  └── readiness ─────┘
//	                      ├─▶ objects/ patches/ ──▶ control plane, node agents (they watch these folders)
//	                      ├─▶ vips, dns         ──▶ services for pods outside the mesh
//	                      └─▶ status            ──▶ control.sock ──▶ culvert ps, status, …
//
//	supervise: controlplane, and on each node an agent and a ztunnel,
//	           each a process inside its node's network namespace
//
// The parts talk to each other only as they do on a real cluster: xDS, CA, ZDS,
// HBONE, the CNI's /cmdadd, and objects, here in files. So any of them can be
// another program.
//
// Everything is below one folder, /run/culvert/NAME, and goes away when Run
// returns; the end of the process, however it comes, ends every process that it
// started. A Mesh is run once; its other methods may be called from any
// goroutine while it runs.
package laptop

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/culvert-mesh/culvert/cli/laptop/cluster"
	"github.com/culvert-mesh/culvert/cli/laptop/dns"
	"github.com/culvert-mesh/culvert/cli/laptop/fabric"
	"github.com/culvert-mesh/culvert/cli/laptop/kubelet"
	"github.com/culvert-mesh/culvert/cli/laptop/spawn"
	"github.com/culvert-mesh/culvert/cli/laptop/supervise"
	"github.com/culvert-mesh/culvert/cli/laptop/wiretap"
	"github.com/culvert-mesh/culvert/pkg/folder"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netns"
	"github.com/culvert-mesh/culvert/pkg/run"
	"github.com/culvert-mesh/culvert/pkg/token"
)

// Config says what mesh to run.
type Config struct {
	Name     string
	Folders  []string          // the user's YAML
	Nodes    int               // how many
	Ztunnels map[string]string // programs that stand in for ours, by node
	Self     string            // the culvert binary
	PATH     string            // for pods
	Version  string
	Log      *slog.Logger
	Event    func(Event) // called by one goroutine at a time; nil = nobody looks
}

// Event is one thing that happened, for people.
type Event struct {
	Time    time.Time `json:"time"`
	Subject string    `json:"subject"`
	Text    string    `json:"text"`
	Bad     bool      `json:"bad,omitempty"`
}

// Mesh is one running mesh.
type Mesh struct {
	cfg     Config
	dir     Dir
	log     *slog.Logger
	began   time.Time
	nodes   []string
	fabric  *fabric.Fabric
	spawner *spawn.Spawner
	issuer  *token.Issuer
	dns     *dns.Server
	stop    context.CancelCauseFunc
	units   []*supervise.Unit // in the order in which people see them
	objects *cluster.Folder
	patches *cluster.Folder

	calls chan func() // run by the loop, which owns what follows
	state loopState

	mu      sync.Mutex
	reports map[string]cluster.Status // of pods by UID, not yet seen by the loop
	wake    chan struct{}
	built   chan struct{}
	ready   chan struct{}
	events  sync.Mutex

	proxies  []ProxyStatus // guarded by configMu
	configMu sync.Mutex
	config   ConfigStatus
}

// loopState belongs to the loop's goroutine.
type loopState struct {
	cluster  *cluster.Cluster
	kubelets map[string]*kubelet.Kubelet
	objs     *cluster.Objects
	vips     string
	problems []string
	running  sync.WaitGroup
}

// ErrStopped is the cause of a mesh that was told to end.
var ErrStopped = errors.New("stopped")

// New checks the configuration. It makes nothing.
func New(cfg Config) (*Mesh, error) {
	dir, err := DirOf(cfg.Name)
	if err != nil {
		return nil, err
	}
	if cfg.Nodes < 1 || cfg.Nodes > fabric.MaxNodes {
		return nil, fmt.Errorf("--nodes %d: want 1 to %d", cfg.Nodes, fabric.MaxNodes)
	}
	m := &Mesh{cfg: cfg, dir: dir, spawner: spawn.New(), log: cfg.Log, calls: make(chan func()), reports: map[string]cluster.Status{},
		wake: make(chan struct{}, 1), built: make(chan struct{}), ready: make(chan struct{})}
	for i := range cfg.Nodes {
		m.nodes = append(m.nodes, fmt.Sprintf("node-%d", i+1))
	}
	for node, path := range cfg.Ztunnels {
		if !slices.Contains(m.nodes, node) {
			return nil, fmt.Errorf("--ztunnel %s: there is no such node, only %v", node, m.nodes)
		}
		if st, err := os.Stat(path); err != nil || st.IsDir() || st.Mode()&0o111 == 0 {
			return nil, fmt.Errorf("--ztunnel %s: %s is no program", node, path)
		}
	}
	for i, f := range cfg.Folders {
		abs, err := filepath.Abs(f)
		if err != nil {
			return nil, err
		}
		if st, err := os.Stat(abs); err != nil || !st.IsDir() {
			return nil, WithHint(fmt.Errorf("%s is no folder", f), "give a folder of Kubernetes YAML, such as examples/shop")
		}
		m.cfg.Folders[i] = abs
	}
	return m, nil
}

// Dir returns the mesh's state folder.
func (m *Mesh) Dir() Dir { return m.dir }

// Built is closed when the network is there and nothing runs on it yet.
func (m *Mesh) Built() <-chan struct{} { return m.built }

// Tap opens a wiretap on the link between a node and the switch. The mesh must
// be built.
func (m *Mesh) Tap(node string) (*wiretap.Tap, error) {
	return wiretap.Open(m.fabric.Switch, fabric.SwitchPort(node))
}

// Ready is closed when every component and every pod was ready for the first time.
func (m *Mesh) Ready() <-chan struct{} { return m.ready }

// Run runs the mesh until ctx ends or somebody asks for its end, and removes
// everything that it made.
func (m *Mesh) Run(ctx context.Context) (err error) {
	if err := Check(); err != nil {
		return err
	}
	held, err := m.dir.acquire()
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, m.dir.Clean(), held.release(m.dir))
		_ = os.Remove(Root) // when this was the last mesh
	}()
	if _, statErr := os.Stat(string(m.dir)); statErr == nil {
		m.event("mesh", "cleaning up after a run that crashed")
		if err := m.dir.Clean(); err != nil {
			return fmt.Errorf("clean up after the last run: %w", err)
		}
	}
	ctx, m.stop = context.WithCancelCause(ctx)
	defer m.stop(nil)
	m.began = time.Now()
	if err := m.build(); err != nil {
		return err
	}
	defer m.fabric.Close()
	return m.serve(ctx)
}

// build makes what does not move: folders, namespaces, keys, units.
func (m *Mesh) build() error {
	if err := m.dir.create(m.nodes); err != nil {
		return err
	}
	if err := os.Symlink(m.cfg.Self, filepath.Join(m.dir.Bin(), "culvert")); err != nil {
		return err
	}
	var err error
	if m.issuer, err = token.NewIssuer(m.dir.TokenKeys()); err != nil {
		return err
	}
	if err := m.writeNodeTokens(); err != nil {
		return err
	}
	if m.fabric, err = fabric.New(m.dir.Namespaces(), m.dir.PodNamespaces(), m.nodes); err != nil {
		return err
	}
	m.event("network", fmt.Sprintf("%d nodes joined by a switch", len(m.nodes)))
	m.dns = dns.NewServer(dns.NewZone(mesh.DefaultClusterDomain, nil))
	m.objects, m.patches = cluster.NewFolder(m.dir.Objects()), cluster.NewFolder(m.dir.ClusterPatches())
	m.state = loopState{cluster: cluster.New(m.nodes), kubelets: map[string]*kubelet.Kubelet{}}
	m.firstState()
	if err := m.buildUnits(); err != nil {
		return err
	}
	close(m.built)
	return nil
}

// firstState writes the objects before anything reads them.
func (m *Mesh) firstState() {
	snap := folder.Load(folder.Layers{Base: m.cfg.Folders})
	m.setObjects(snap)
}

// serve runs every part until ctx ends.
func (m *Mesh) serve(ctx context.Context) error {
	var g run.Group
	g.Add("spawn", m.spawner.Run)
	g.Add("control", m.serveControl)
	for _, n := range m.fabric.Nodes {
		g.Add("dns "+n.Name, func(ctx context.Context) error { return m.serveDNS(ctx, n) })
	}
	for _, u := range m.units {
		g.Add(u.Status().Name, u.Run)
	}
	g.Add("tokens", m.renewTokens)
	g.Add("folder", m.watch)
	g.Add("config", m.watchConfig)
	g.Add("proxies", m.watchProxies)
	g.Add("readiness", m.awaitReady)
	g.Add("cluster", m.loop)
	err := g.Run(ctx)
	if errors.Is(context.Cause(ctx), ErrStopped) {
		return nil
	}
	return err
}

// Stop ends the mesh.
func (m *Mesh) Stop() { m.stop(ErrStopped) }

func (m *Mesh) event(subject, text string) { m.tell(Event{Subject: subject, Text: text}) }

func (m *Mesh) bad(subject, text string) { m.tell(Event{Subject: subject, Text: text, Bad: true}) }

func (m *Mesh) tell(e Event) {
	m.events.Lock()
	defer m.events.Unlock()
	e.Time = time.Now()
	m.log.Info(e.Text, "subject", e.Subject)
	if m.cfg.Event != nil {
		m.cfg.Event(e)
	}
}

// serveDNS answers names on a node, at the address that its pods know.
func (m *Mesh) serveDNS(ctx context.Context, n *fabric.Node) error {
	var g run.Group
	for _, a := range []netip.Addr{fabric.DNS4, fabric.DNS6} {
		at := netip.AddrPortFrom(a, 53)
		udp, err := n.NS.ListenPacket(ctx, at, netns.ListenOptions{})
		if err != nil {
			return err
		}
		tcp, err := n.NS.Listen(ctx, at, netns.ListenOptions{})
		if err != nil {
			udp.Close()
			return err
		}
		g.Add(at.String(), func(ctx context.Context) error { return m.dns.Serve(ctx, udp, tcp) })
	}
	return g.Run(ctx)
}

// watch follows the user's folders.
func (m *Mesh) watch(ctx context.Context) error {
	w := folder.NewWatcher(folder.Config{Layers: folder.Layers{Base: m.cfg.Folders}, Log: m.log})
	return w.Run(ctx, func(s *folder.Snapshot) {
		_ = m.do(ctx, func() { m.setObjects(s) })
	})
}

// do runs fn in the loop and waits for it.
func (m *Mesh) do(ctx context.Context, fn func()) error {
	done := make(chan struct{})
	select {
	case m.calls <- func() { fn(); close(done) }:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (m *Mesh) unit(name string) *supervise.Unit {
	for _, u := range m.units {
		if u.Status().Name == name {
			return u
		}
	}
	return nil
}
