// Package inpod keeps one proxy for every meshed pod of the node, as the node
// agent tells it to (ZDS).
//
//	Add ──▶ listeners open? ──yes──▶ up ──Delete──▶ leaving ──connections end──▶ gone
//	              │no                 ▲ │
//	              └──▶ pending ──5 s──┘ │
//	                      ▲─────────────┘ its proxy has failed
//
// The agent waits for each answer, so Add opens the listeners and nothing more:
// what a pod may do is learned when a connection comes. A pod whose listeners
// cannot be opened, or whose proxy fails, is tried again. A ztunnel that starts is
// ready when it serves every pod of the agent's first snapshot, but for those that
// it has tried in vain for a while: a node does not depend on one pod. One that
// serves none of several is itself at fault, and must not replace its predecessor.
// One that has been ready stays so: an agent that is away and a pod that fails are
// no reason to take it from the pods that it serves.
//
// Pods is safe for concurrent use.
package inpod

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netns"
	"github.com/culvert-mesh/culvert/pkg/run"
	"github.com/culvert-mesh/culvert/pkg/zds"
)

// retryEvery is how often the listeners of pending pods are tried again.
const retryEvery = 5 * time.Second

// enoughTries is after how many rounds a ztunnel that starts no longer waits for
// pods that are pending.
const enoughTries = 3

// failPause is how long a pod whose proxy has failed waits for the next one. Its
// connections wait in the queues of its sockets, where a store holds them.
const failPause = 100 * time.Millisecond

// Proxy serves one pod.
type Proxy interface {
	// Listen opens the pod's ports. After an error it may be called again.
	Listen(ctx context.Context) error
	// Run serves until the proxy is drained or closed, or ctx ends.
	Run(ctx context.Context) error
	// Deposit gives the listening sockets to a store that has not got them yet.
	Deposit()
	// Open returns how many connections are open.
	Open() int
	// Drain stops accepting and waits for the connections until ctx ends.
	Drain(ctx context.Context)
	// Gone is Drain for a pod that has left: also without a deadline it ends
	// soon after the pod has.
	Gone(ctx context.Context)
	// Close ends everything at once.
	Close()
}

// Config is what Pods needs.
type Config struct {
	// New returns the proxy of a pod, to which it gives the namespace.
	New func(uid mesh.PodUID, info mesh.PodInfo, ns *netns.NS) Proxy
	// Ready is called, once or more often, when every pod of the agent's snapshot
	// is served that can be.
	Ready   func()
	Metrics *Metrics
	Log     *slog.Logger
}

// Pods are the pods of the node. It is a zds.Handler.
type Pods struct {
	cfg    Config
	ctx    context.Context // of the proxies
	cancel context.CancelFunc
	alive  sync.WaitGroup // goroutines of proxies, also of those that are leaving
	failed chan struct{}  // a proxy has

	mu       sync.Mutex
	pods     map[mesh.PodUID]*pod
	leaving  map[*pod]struct{}
	named    map[mesh.PodUID]bool // since the snapshot began; nil after it
	synced   bool                 // a snapshot is complete and the agent still there
	tries    int                  // rounds since then in which pods stayed pending
	draining bool
}

// pod is one pod. Its fields are under Pods.mu.
type pod struct {
	uid   mesh.PodUID
	info  mesh.PodInfo
	ns    *netns.NS // for another proxy, should this one fail
	proxy Proxy
	spent bool // the proxy has failed: the next try takes another
	up    bool // its listeners are open
}

// New returns the pods of a node, none yet.
func New(cfg Config) *Pods {
	p := &Pods{cfg: cfg, failed: make(chan struct{}, 1), pods: map[mesh.PodUID]*pod{}, leaving: map[*pod]struct{}{}}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

var _ zds.Handler = (*Pods)(nil)

// SnapshotBegin implements zds.Handler.
func (p *Pods) SnapshotBegin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.named, p.synced = map[mesh.PodUID]bool{}, false
	p.reportLocked()
}

// Add implements zds.Handler.
func (p *Pods) Add(ctx context.Context, uid mesh.PodUID, info mesh.PodInfo, ns *netns.NS) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	defer p.reportLocked()
	if p.named != nil {
		p.named[uid] = true
	}
	old := p.pods[uid]
	switch {
	case old != nil && old.ns.ID() == ns.ID() && old.up:
		ns.Close()
		return nil
	case p.draining:
		ns.Close()
		return errDraining
	case old != nil:
		p.dropLocked(old)
	}
	po := &pod{uid: uid, info: info, ns: ns}
	if err := p.renewLocked(po); err != nil {
		ns.Close()
		return err
	}
	p.pods[uid] = po
	return p.startLocked(ctx, po)
}

// errDraining says that another ztunnel must take the pod.
var errDraining = errors.New("this ztunnel is leaving")

// renewLocked gives the pod a proxy that has not been started.
func (p *Pods) renewLocked(po *pod) error {
	dup, err := po.ns.Dup()
	if err != nil {
		return err
	}
	po.proxy, po.spent = p.cfg.New(po.uid, po.info, dup), false
	return nil
}

// startLocked opens the pod's listeners and serves them.
func (p *Pods) startLocked(ctx context.Context, po *pod) error {
	if err := po.proxy.Listen(ctx); err != nil {
		p.cfg.Log.Warn("pod is pending", "pod", po.info, "uid", po.uid, "error", err)
		return err
	}
	po.up = true
	p.cfg.Metrics.Started.Inc()
	p.cfg.Log.Info("pod is in the mesh", "pod", po.info, "uid", po.uid, "netns", po.ns.ID())
	p.alive.Add(1)
	go p.serve(po, po.proxy)
	return nil
}

func (p *Pods) serve(po *pod, proxy Proxy) {
	defer p.alive.Done()
	err := proxy.Run(p.ctx)
	p.cfg.Metrics.Stopped.Inc()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.draining || p.pods[po.uid] != po {
		return // it was told to end
	}
	p.cfg.Log.Error("proxy of a pod has failed", "pod", po.info, "uid", po.uid, "error", err)
	proxy.Close()
	po.up, po.spent = false, true
	p.reportLocked()
	select {
	case p.failed <- struct{}{}:
	default:
	}
}

// Keep implements zds.Handler.
func (p *Pods) Keep(uid mesh.PodUID) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.named != nil {
		p.named[uid] = true
	}
	return nil
}

// Delete implements zds.Handler.
func (p *Pods) Delete(uid mesh.PodUID) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	defer p.reportLocked()
	delete(p.named, uid)
	if po := p.pods[uid]; po != nil {
		p.dropLocked(po)
	}
	return nil
}

// SnapshotDone implements zds.Handler.
func (p *Pods) SnapshotDone() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for uid, po := range p.pods {
		if !p.named[uid] {
			p.dropLocked(po)
		}
	}
	p.named, p.synced, p.tries = nil, true, 0
	p.reportLocked()
}

// Disconnected implements zds.Handler.
func (p *Pods) Disconnected() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.named, p.synced = nil, false
	p.reportLocked()
}

// dropLocked lets a pod go: no new connections, the open ones may end.
func (p *Pods) dropLocked(po *pod) {
	delete(p.pods, po.uid)
	po.ns.Close()
	if !po.up {
		po.proxy.Close()
		return
	}
	p.cfg.Log.Info("pod has left the mesh", "pod", po.info, "uid", po.uid)
	p.leaving[po] = struct{}{}
	p.alive.Add(1)
	go p.letGo(po)
}

func (p *Pods) letGo(po *pod) {
	defer p.alive.Done()
	po.proxy.Gone(p.ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.leaving, po)
}

// reportLocked brings readiness and gauges up to date.
func (p *Pods) reportLocked() {
	pending := 0
	for _, po := range p.pods {
		if !po.up {
			pending++
		}
	}
	p.cfg.Metrics.Active.Set(float64(len(p.pods) - pending))
	p.cfg.Metrics.Pending.Set(float64(pending))
	enough := p.tries >= enoughTries && (pending < len(p.pods) || pending == 1)
	if p.synced && (pending == 0 || enough) {
		p.cfg.Ready()
	}
}

// Run tries pending pods again until ctx ends.
func (p *Pods) Run(ctx context.Context) error {
	tick := time.NewTicker(retryEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-p.failed:
			if run.Sleep(ctx, failPause) != nil {
				return nil
			}
		}
		p.retry(ctx)
	}
}

func (p *Pods) retry(ctx context.Context) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tries++
	for _, po := range p.pods {
		if po.up || p.draining {
			continue
		}
		if po.spent {
			if err := p.renewLocked(po); err != nil { // no descriptors: later
				p.cfg.Log.Error("no proxy for a pod", "pod", po.info, "uid", po.uid, "error", err)
				continue
			}
		}
		p.startLocked(ctx, po)
	}
	p.reportLocked()
}

// Drain stops accepting connections of every pod, waits for the open ones until
// ctx ends, and returns when nothing is served any more. Pods may still be deleted
// meanwhile; to add one is an error from now on.
func (p *Pods) Drain(ctx context.Context) {
	stop := context.AfterFunc(ctx, p.cancel)
	defer stop()
	var done sync.WaitGroup
	for _, po := range p.all() {
		done.Go(func() {
			if po.up {
				po.proxy.Drain(ctx)
			}
			po.proxy.Close()
			po.ns.Close()
		})
	}
	done.Wait()
	p.forget()
	p.alive.Wait()
	p.cancel()
}

// forget drops the pods, which are closed: one that is deleted from now on starts
// nothing that Drain would have to wait for.
func (p *Pods) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.pods)
}

// Deposit gives the sockets of every pod that is served to a store that has not
// got them yet.
func (p *Pods) Deposit() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, po := range p.pods {
		if po.up && !p.draining {
			po.proxy.Deposit()
		}
	}
}

// Open returns how many connections of pods are open, also of those that leave.
func (p *Pods) Open() (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, po := range p.pods {
		n += po.proxy.Open()
	}
	for po := range p.leaving {
		n += po.proxy.Open()
	}
	return n
}

// all returns every pod that is served or pending, and keeps retry from adding.
func (p *Pods) all() []*pod {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.draining = true
	all := make([]*pod, 0, len(p.pods))
	for _, po := range p.pods {
		all = append(all, po)
	}
	return all
}

// State describes one pod, for people.
type State struct {
	UID   mesh.PodUID
	Info  mesh.PodInfo
	Up    bool
	Proxy Proxy
}

// States returns the pods that are served or pending, in no order.
func (p *Pods) States() []State {
	p.mu.Lock()
	defer p.mu.Unlock()
	states := make([]State, 0, len(p.pods))
	for _, po := range p.pods {
		states = append(states, State{po.uid, po.info, po.up, po.proxy})
	}
	return states
}
