// Package kubelet runs one pod on a node of the laptop cluster, from its network
// namespace to its end.
//
//	sandbox   namespace and link, and the node agent is told (as the CNI plugin does)
//	start     the container's command, with its environment
//	probe     startup, then readiness and liveness, from the node's namespace
//	restart   when the process ends, after a growing wait
//	end       SIGTERM, the grace period, SIGKILL; then the namespace goes
//
// A Kubelet is one pod's. Its Run owns everything; Stop may be called from any
// goroutine.
package kubelet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/culvert-mesh/culvert/cli/laptop/cluster"
	"github.com/culvert-mesh/culvert/cli/laptop/fabric"
	"github.com/culvert-mesh/culvert/cli/laptop/pod"
	"github.com/culvert-mesh/culvert/cli/laptop/spawn"
	"github.com/culvert-mesh/culvert/pkg/netns"
	"github.com/culvert-mesh/culvert/pkg/run"
)

// Config is what a Kubelet needs of its node and cluster.
type Config struct {
	Fabric  *fabric.Fabric
	Node    *fabric.Node
	Self    string // the culvert binary
	Spawner *spawn.Spawner
	Dir     string   // for this pod's files; must exist
	Hide    string   // see pod.Spec
	Env     []string // every container's environment, before its own
	Domain  string   // "cluster.local"
	Output  io.Writer
	// Join tells the node agent of the new sandbox; nil when the pod is outside
	// the mesh. It is tried again until it succeeds.
	Join func(ctx context.Context) error
	// Images are the programs of built-in images, by name.
	Images map[string]Image
	// Report is called with every change, by one goroutine at a time. It must
	// not block.
	Report func(cluster.Status)
	Log    *slog.Logger
}

// Image is a built-in image.
type Image struct {
	Command []string
	Env     []string
}

// Waits of a Kubelet.
const (
	minBackoff   = 200 * time.Millisecond
	maxBackoff   = 10 * time.Second
	stableAfter  = 10 * time.Second
	joinRetry    = 30 * time.Millisecond
	joinRetryMax = time.Second
	defaultGrace = 30 * time.Second
	// signalAfter is the time from a pod's deletion to SIGTERM. A real kubelet hears
	// of the deletion when everybody who watches does, and then asks the container
	// runtime; here it is told directly, and would overtake all of them.
	signalAfter = 100 * time.Millisecond
)

// Kubelet runs one pod.
type Kubelet struct {
	cfg  Config
	pod  *cluster.Pod
	stop chan struct{}
	once sync.Once

	mu     sync.Mutex
	status cluster.Status
}

// New returns a Kubelet for p; nothing happens before Run.
func New(cfg Config, p *cluster.Pod) *Kubelet {
	return &Kubelet{cfg: cfg, pod: p, stop: make(chan struct{})}
}

// Stop asks the pod to end, within its grace period.
func (k *Kubelet) Stop() { k.once.Do(func() { close(k.stop) }) }

// Run runs the pod until Stop, or until ctx ends: then it is killed. Everything
// of the pod is gone when Run returns.
func (k *Kubelet) Run(ctx context.Context) error {
	ns, err := k.cfg.Fabric.AddPod(k.cfg.Node, k.pod.UID, k.pod.Addrs)
	if err != nil {
		k.update(func(s *cluster.Status) { s.Message = err.Error() })
		k.await(ctx)
		return err
	}
	k.live(ctx, ns)
	return k.cfg.Fabric.RemovePod(k.cfg.Node, k.pod.UID, k.pod.Addrs)
}

// await waits for Stop or the end of ctx.
func (k *Kubelet) await(ctx context.Context) {
	select {
	case <-k.stop:
	case <-ctx.Done():
	}
}

// live does everything between the making and the removing of the namespace.
func (k *Kubelet) live(ctx context.Context, ns *netns.NS) {
	stopping, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		k.await(stopping)
		cancel()
	}()
	if err := k.prepare(); err != nil {
		k.update(func(s *cluster.Status) { s.Message = err.Error() })
		k.await(ctx)
		return
	}
	if !k.join(stopping) {
		return
	}
	spec, err := k.spec(ns)
	if err != nil {
		k.update(func(s *cluster.Status) { s.Message = err.Error() })
		k.await(ctx)
		return
	}
	k.keepRunning(ctx, stopping, spec)
}

func (k *Kubelet) prepare() error {
	addrs := make([]string, 0, 2)
	for _, a := range k.pod.Addrs.Slice() {
		addrs = append(addrs, a.String())
	}
	return pod.WriteEtc(k.cfg.Dir, k.hostname(), k.pod.Name.Namespace, k.cfg.Domain,
		[]string{fabric.DNS4.String(), fabric.DNS6.String()}, addrs)
}

func (k *Kubelet) hostname() string {
	if h := k.pod.Object.Spec.Hostname; h != "" {
		return h
	}
	return k.pod.Name.Name
}

// join tells the agent until it agrees: a pod of the mesh never runs uncaptured.
func (k *Kubelet) join(ctx context.Context) bool {
	if k.cfg.Join == nil {
		return true
	}
	back := run.NewBackoff(joinRetry, joinRetryMax)
	for {
		err := k.cfg.Join(ctx)
		if err == nil {
			k.update(func(s *cluster.Status) { s.Message = "" })
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		k.update(func(s *cluster.Status) { s.Message = "waiting to join the mesh: " + err.Error() })
		if run.Sleep(ctx, back.Next()) != nil {
			return false
		}
	}
}

// spec turns the pod's first container into a process.
func (k *Kubelet) spec(ns *netns.NS) (pod.Spec, error) {
	if len(k.pod.Object.Spec.Containers) == 0 {
		return pod.Spec{}, errors.New("spec.containers: a pod needs a container")
	}
	ctr := k.pod.Object.Spec.Containers[0]
	env, err := k.environment(ctr)
	if err != nil {
		return pod.Spec{}, err
	}
	command := expand(ctr.Command, env)
	image, builtIn := k.cfg.Images[imageName(ctr.Image)]
	if len(command) == 0 {
		if !builtIn {
			return pod.Spec{}, fmt.Errorf("spec.containers[0].image: %q is not built in (%s are); set command to run a program of this machine",
				ctr.Image, strings.Join(imageNames(k.cfg.Images), ", "))
		}
		command = image.Command
	}
	if builtIn {
		env = append(env, image.Env...)
	}
	return pod.Spec{
		Hostname: k.hostname(), Command: append(command, expand(ctr.Args, env)...), Env: env, Dir: ctr.WorkingDir,
		Etc: k.cfg.Dir, Hide: k.cfg.Hide, NS: ns, Output: k.cfg.Output, Self: k.cfg.Self, Spawner: k.cfg.Spawner,
	}, nil
}

// keepRunning runs the container's process until stopping ends, and starts it
// again when it dies.
func (k *Kubelet) keepRunning(ctx, stopping context.Context, spec pod.Spec) {
	back := run.NewBackoff(minBackoff, maxBackoff)
	for stopping.Err() == nil {
		began := time.Now()
		p, err := pod.Start(spec)
		text := ""
		status := -1
		if err == nil {
			k.attend(ctx, stopping, p)
			status, text = p.Exit()
		} else {
			text = err.Error()
		}
		if stopping.Err() != nil {
			break
		}
		k.update(func(s *cluster.Status) { s.Running, s.Ready, s.PID, s.Message = false, false, 0, "ended: "+text })
		if !k.again(status) {
			k.await(stopping)
			break
		}
		if time.Since(began) > stableAfter {
			back.Reset()
		}
		if run.Sleep(stopping, back.Next()) != nil {
			break
		}
		k.update(func(s *cluster.Status) { s.Restarts++ })
	}
	k.update(func(s *cluster.Status) { s.Running, s.Ready, s.PID = false, false, 0 })
}

// again reports whether the pod's restart policy wants another process.
func (k *Kubelet) again(status int) bool {
	switch k.pod.Object.Spec.RestartPolicy {
	case corev1.RestartPolicyNever:
		return false
	case corev1.RestartPolicyOnFailure:
		return status != 0
	}
	return true
}

// attend watches one process until it has ended; it ends it when asked to.
func (k *Kubelet) attend(ctx, stopping context.Context, p *pod.Process) {
	probing, cancel := context.WithCancel(stopping)
	defer cancel()
	k.update(func(s *cluster.Status) {
		s.Running, s.PID, s.StartedAt, s.Message = true, p.PID(), time.Now(), ""
	})
	unhealthy := make(chan string, 1)
	var probes sync.WaitGroup
	defer probes.Wait()
	probes.Go(func() { k.probe(probing, p, unhealthy) })
	select {
	case <-p.Done():
	case reason := <-unhealthy:
		k.cfg.Log.Warn("pod is not healthy", "pod", k.pod.Name.String(), "reason", reason)
		k.update(func(s *cluster.Status) { s.Ready, s.Message = false, reason })
		p.Terminate(k.grace())
	case <-stopping.Done():
		cancel()
		k.update(func(s *cluster.Status) { s.Ready = false })
		if ctx.Err() != nil {
			p.Terminate(0)
			break
		}
		stop := context.AfterFunc(ctx, p.Kill)
		k.linger(ctx, p)
		p.Terminate(k.grace())
		stop()
	}
	cancel()
}

// linger waits for signalAfter, or until the process or ctx has ended.
func (k *Kubelet) linger(ctx context.Context, p *pod.Process) {
	t := time.NewTimer(signalAfter)
	defer t.Stop()
	select {
	case <-t.C:
	case <-p.Done():
	case <-ctx.Done():
	}
}

func (k *Kubelet) grace() time.Duration {
	if s := k.pod.Object.Spec.TerminationGracePeriodSeconds; s != nil {
		return time.Duration(*s) * time.Second
	}
	return defaultGrace
}

// update changes the status and reports it.
func (k *Kubelet) update(change func(*cluster.Status)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	before := k.status
	change(&k.status)
	if k.status != before {
		k.cfg.Report(k.status)
	}
}

// TokenPath returns where a pod's service-account token is kept in its folder.
func TokenPath(dir string) string { return filepath.Join(dir, "token") }
