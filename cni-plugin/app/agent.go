package app

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"github.com/culvert-mesh/culvert/cni-plugin/enroll"
	"github.com/culvert-mesh/culvert/cni-plugin/podns"
	"github.com/culvert-mesh/culvert/cni-plugin/podsource"
	"github.com/culvert-mesh/culvert/pkg/handover"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netns"
	"github.com/culvert-mesh/culvert/pkg/run"
	"github.com/culvert-mesh/culvert/pkg/zds"
)

// Parts are what an Agent is made of.
type Parts struct {
	Source  podsource.Source
	Finder  podns.Finder
	Notes   Notes  // nil: a folder of patches, Config.PatchesOut
	Events  Events // nil: told to nobody but the log
	Metrics *Metrics
	Log     *slog.Logger
}

// Notes is where it is written how pods are redirected. An Annotator of package
// apiserver is one.
type Notes interface {
	// Annotate writes it on a pod; "" takes it away. It does not wait.
	Annotate(uid mesh.PodUID, p mesh.PodInfo, redirection string)
}

// Agent follows the pods of one node.
type Agent struct {
	cfg     Config
	parts   Parts
	log     *slog.Logger
	zds     *zds.Server
	store   *handover.Store
	patches patchDir

	provenPod atomic.Bool // the plugin has announced the pod with which the node is proven

	node      func() (*netns.NS, error) // opens the node's own namespace
	rewriting sync.Mutex                // held while the node's rules for probes change; comes before mu
	rewritten []netip.Addr              // to which pods they are
	probes    chan struct{}             // holds a token when the node's rules for probes may have to change
	loaded    chan struct{}             // closed after the first snapshot of the source
	workers   sync.WaitGroup            // one per pod

	mu         sync.Mutex
	namespaces map[string]enroll.Namespace
	proven     []netip.Addr // of the pod with which the node is proven
	pods       map[mesh.PodUID]*pod
	changed    chan struct{} // closed and replaced at every snapshot
	written    string        // content of the eligibility file
	enrolling  time.Time     // when a pod that ran already joined last
	released   bool          // the mesh leaves the node: nobody is in it
	gone       bool          // and its files with it
}

// New returns an agent that does nothing before Run.
func New(cfg Config, parts Parts) *Agent {
	if cfg.DrainGrace <= 0 {
		cfg.DrainGrace = 2 * time.Second
	}
	a := &Agent{
		cfg: cfg, parts: parts, log: parts.Log, patches: patchDir(cfg.PatchesOut),
		node: netns.Current, probes: make(chan struct{}, 1), loaded: make(chan struct{}), changed: make(chan struct{}),
		namespaces: map[string]enroll.Namespace{}, pods: map[mesh.PodUID]*pod{},
	}
	a.store = a.newStore()
	a.zds = zds.NewServer(cfg.ZDS, zds.ServerConfig{Log: parts.Log, Snapshot: a.members, Connected: a.ztunnels, Refused: a.refused})
	return a
}

// Run follows the source until ctx ends. ztunnel is served from the first
// snapshot on, so that it never hears of fewer pods than there are.
func (a *Agent) Run(ctx context.Context) error {
	var g run.Group
	g.Add("source", func(ctx context.Context) error {
		return a.parts.Source.Run(ctx, func(s podsource.Snapshot) { a.update(ctx, s) })
	})
	g.Add("zds", func(ctx context.Context) error {
		select {
		case <-a.loaded:
			return a.zds.Run(ctx)
		case <-ctx.Done():
			return nil
		}
	})
	if a.cfg.ProbeSNAT {
		g.Add("probes", a.runProbes)
	}
	if a.cfg.Handover != "" {
		g.Add("handover", a.runStore)
		g.Add("foreign ztunnels", a.watchForeign)
	}
	err := g.Run(ctx)
	a.workers.Wait()
	return err
}

// Ready reports whether the agent can serve pods: it knows them. It does not
// depend on any one pod, nor on ztunnel.
func (a *Agent) Ready() bool {
	select {
	case <-a.loaded:
		return true
	default:
		return false
	}
}

// update takes a snapshot of the source.
func (a *Agent) update(ctx context.Context, s podsource.Snapshot) {
	first := !a.Ready()
	a.mu.Lock()
	a.namespaces = s.Namespaces
	var born []*pod
	for uid, spec := range s.Pods {
		p := a.pods[uid]
		if p == nil {
			p = newPod(a, spec)
			a.pods[uid] = p
			born = append(born, p)
			a.parts.Metrics.events.WithLabelValues("add").Inc()
		} else if !reflect.DeepEqual(p.spec, spec) {
			a.parts.Metrics.events.WithLabelValues("update").Inc()
		}
		p.spec = spec
		p.poke()
	}
	for uid, p := range a.pods {
		if _, ok := s.Pods[uid]; !ok && !p.removed {
			p.removed = true
			p.poke()
			a.parts.Metrics.events.WithLabelValues("delete").Inc()
		}
	}
	close(a.changed)
	a.changed = make(chan struct{})
	a.mu.Unlock()
	if first && a.parts.Notes == nil {
		a.patches.sweep(s.Pods)
	}
	for _, p := range born {
		p.resume()
		a.workers.Go(func() { p.run(ctx) })
	}
	a.writeEligibility()
	a.pokeProbes()
	if first {
		close(a.loaded)
	}
}

// wanted is how a pod should be now.
type wanted struct {
	spec     enroll.Pod
	decision enroll.Decision
	removed  bool // the pod is gone
	refused  bool // a ztunnel did not take it, since wanted was asked last
}

func (a *Agent) wanted(p *pod) wanted {
	a.mu.Lock()
	defer a.mu.Unlock()
	w := wanted{p.spec, a.decideLocked(p.spec), p.removed, p.refused}
	p.refused = false
	return w
}

// decideLocked says whether a pod is in the mesh now.
func (a *Agent) decideLocked(p enroll.Pod) enroll.Decision {
	if a.released {
		return enroll.Decision{Reason: MeshGoes}
	}
	return enroll.Decide(a.cfg.Enroll, p, a.namespaces[p.Namespace])
}

// forget drops a pod that is gone.
func (a *Agent) forget(p *pod) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.pods, p.uid)
}

// find waits until the source shows that pod, which may take longer than the
// runtime's announcement of it.
func (a *Agent) find(ctx context.Context, namespace, name, uid string) (*pod, error) {
	for {
		a.mu.Lock()
		changed := a.changed
		for _, p := range a.pods {
			if p.called(namespace, name, uid) && !p.removed {
				a.mu.Unlock()
				return p, nil
			}
		}
		a.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, errors.New("the pod is not known on this node")
		}
	}
}

// members is the snapshot for a ztunnel that connects.
func (a *Agent) members(context.Context) ([]zds.Workload, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var all []zds.Workload
	for _, p := range a.pods {
		if !p.member {
			continue
		}
		w := zds.Workload{UID: p.uid, Info: p.spec.Info()}
		if p.shared != nil {
			dup, err := p.shared.Dup()
			if err != nil {
				a.log.Error("namespace lost", "pod", w.Info.String(), "error", err)
			} else {
				w.NS = dup
			}
		}
		all = append(all, w)
	}
	return all, nil
}

// ztunnels is told when a ztunnel comes or goes. Pods that wait for one try again
// at once.
func (a *Agent) ztunnels(n int) {
	a.parts.Metrics.ztunnels.Set(float64(n))
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range a.pods {
		p.poke()
	}
}

// refused is told when a ztunnel did not take a pod that an earlier one had.
func (a *Agent) refused(uid mesh.PodUID, _ error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if p := a.pods[uid]; p != nil {
		p.refused = true
		p.poke()
	}
}
