// Package cluster decides what a small Kubernetes would: which pods a set of
// objects asks for, where they run, which addresses services get and what stands
// behind them. It starts nothing; its caller runs the pods and reports back.
//
//	folder ─▶ Decode ─▶ Objects ─▶ Sync ─▶ Changes{Start, Stop}
//	                                 ▲          │
//	               Report(pod, ready) └──────────┘ the caller runs pods
//
//	Services() ─▶ virtual addresses, endpoints      Write(dir) ─▶ objects and patches
//
// A Cluster belongs to one goroutine. Objects that it was given or gives away
// are not changed afterwards.
package cluster

import (
	"crypto/rand"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"encoding/json"

	"github.com/culvert-mesh/culvert/cli/laptop/fabric"
)

// Pod is one pod that runs, is about to, or is about to end.
type Pod struct {
	Name     Name
	UID      string
	Node     string
	NodeNum  int // from 1
	Addrs    fabric.Pair
	Object   *corev1.Pod // what to run; status as of Report
	Owner    Name        // the Deployment, or the zero Name
	Hash     string      // of the template that it was made from
	Created  time.Time
	Stopping bool

	serial int // order of creation
	status Status
}

// Status is what running a pod came to.
type Status struct {
	Running   bool // its process runs
	Ready     bool
	Restarts  int
	PID       int
	Message   string // why it does not run, or is not ready
	StartedAt time.Time
}

// Status returns what was reported last.
func (p *Pod) Status() Status { return p.status }

// Changes are what Sync asks its caller to do.
type Changes struct {
	Start []*Pod
	Stop  []*Pod
}

// Cluster is the state of a small cluster.
type Cluster struct {
	nodes    []string
	objects  *Objects
	rendered map[Name]*rendered // by Gateway
	pods     map[Name]*Pod
	restarts map[Name]int // of Deployments, asked for by a person
	vips     map[Name]int // numbers of virtual addresses, by Service
	nextVIP  int
	serial   int
	problems []string
}

// New returns an empty cluster with those nodes.
func New(nodes []string) *Cluster {
	return &Cluster{
		nodes: nodes, objects: newObjects(), rendered: map[Name]*rendered{}, pods: map[Name]*Pod{},
		restarts: map[Name]int{}, vips: map[Name]int{}, nextVIP: firstVIP,
	}
}

// firstVIP is the first number given to services that did not ask for an address.
const firstVIP = 256

// Pods returns all pods, by name.
func (c *Cluster) Pods() []*Pod {
	out := make([]*Pod, 0, len(c.pods))
	for _, n := range sorted(c.pods) {
		out = append(out, c.pods[n])
	}
	return out
}

// Pod returns the pod of that name, or nil.
func (c *Cluster) Pod(n Name) *Pod { return c.pods[n] }

// Problems returns what the last Sync could not do, for people.
func (c *Cluster) Problems() []string { return c.problems }

// Set replaces the user's objects.
func (c *Cluster) Set(objs *Objects) { c.objects = objs }

// RestartDeployment makes the next Sync replace all pods of a Deployment, as
// `kubectl rollout restart` does. It reports whether there is such a one.
func (c *Cluster) RestartDeployment(n Name) bool {
	if c.deployments()[n] == nil {
		return false
	}
	c.restarts[n]++
	return true
}

// Report notes what became of a pod.
func (c *Cluster) Report(uid string, s Status) {
	if p := c.byUID(uid); p != nil {
		p.status = s
	}
}

// Gone notes that a pod has ended for good and its address is free.
func (c *Cluster) Gone(uid string) {
	if p := c.byUID(uid); p != nil {
		delete(c.pods, p.Name)
	}
}

func (c *Cluster) byUID(uid string) *Pod {
	for _, p := range c.pods {
		if p.UID == uid {
			return p
		}
	}
	return nil
}

// Sync compares what there is with what is asked for.
func (c *Cluster) Sync() Changes {
	c.problems = nil
	for _, p := range c.objects.Idle {
		c.problem("%s", p)
	}
	c.render()
	c.allocate()
	var ch Changes
	deployments := c.deployments()
	for _, name := range sorted(deployments) {
		c.syncDeployment(name, deployments[name], &ch)
	}
	for _, name := range sorted(c.objects.Pods) {
		c.syncPod(name, c.objects.Pods[name], &ch)
	}
	for _, p := range c.Pods() {
		alone := p.Owner == (Name{})
		if alone && c.objects.Pods[p.Name] == nil || !alone && deployments[p.Owner] == nil {
			c.stop(p, &ch)
		}
	}
	return ch
}

// deployments returns the user's Deployments and those of Gateways.
func (c *Cluster) deployments() map[Name]*appsv1.Deployment {
	all := maps.Clone(c.objects.Deployments)
	for name, r := range c.rendered {
		all[name] = r.objects.Deployment
	}
	return all
}

// syncDeployment moves a Deployment towards its template: pods of the new one
// come first, and pods of older ones leave as new ones become ready.
func (c *Cluster) syncDeployment(name Name, d *appsv1.Deployment, ch *Changes) {
	want := 1
	if d.Spec.Replicas != nil {
		want = int(max(*d.Spec.Replicas, 0))
	}
	hash := hashOf(d.Spec.Template, c.restarts[name])
	current, old := c.owned(name, hash)
	for len(current) > want {
		c.stop(current[len(current)-1], ch)
		current = current[:len(current)-1]
	}
	for len(current) < want {
		p := c.create(name, d, hash)
		if p == nil {
			break
		}
		current = append(current, p)
		ch.Start = append(ch.Start, p)
	}
	ready := 0
	for _, p := range current {
		if p.status.Ready {
			ready++
		}
	}
	for i := range len(old) - max(want-ready, 0) {
		c.stop(old[i], ch)
	}
}

// owned returns a Deployment's pods that are not stopping, oldest first; of the
// older templates, those that are not ready first.
func (c *Cluster) owned(name Name, hash string) (current, old []*Pod) {
	for _, p := range c.pods {
		switch {
		case p.Owner != name || p.Stopping:
		case p.Hash == hash:
			current = append(current, p)
		default:
			old = append(old, p)
		}
	}
	slices.SortFunc(current, func(a, b *Pod) int { return a.serial - b.serial })
	slices.SortFunc(old, func(a, b *Pod) int {
		if a.status.Ready != b.status.Ready {
			return map[bool]int{false: -1, true: 1}[a.status.Ready]
		}
		return a.serial - b.serial
	})
	return current, old
}

func (c *Cluster) create(owner Name, d *appsv1.Deployment, hash string) *Pod {
	set := owner.Name + "-" + hash
	t := d.Spec.Template.DeepCopy()
	obj := &corev1.Pod{ObjectMeta: t.ObjectMeta, Spec: t.Spec}
	obj.Namespace = owner.Namespace
	obj.Name = c.freeName(owner.Namespace, set)
	if obj.Labels == nil {
		obj.Labels = map[string]string{}
	}
	obj.Labels["pod-template-hash"] = hash
	obj.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: set,
		UID: types.UID(newUID()), Controller: new(true)}}
	return c.place(obj, owner, hash)
}

// freeName returns a pod name with a suffix that no pod has.
func (c *Cluster) freeName(ns, set string) string {
	for i := 0; ; i++ {
		name := set + "-" + letters(fmt.Sprintf("%s/%s/%d/%d", ns, set, c.serial, i), 5)
		if c.pods[Name{ns, name}] == nil {
			return name
		}
	}
}

// syncPod starts a pod that stands alone, and starts it anew when what it runs
// has changed. Other changes of it need no restart.
func (c *Cluster) syncPod(name Name, obj *corev1.Pod, ch *Changes) {
	hash := hashOf(corev1.PodTemplateSpec{Spec: obj.Spec}, 0)
	p := c.pods[name]
	switch {
	case p == nil:
		if p = c.place(obj.DeepCopy(), Name{}, hash); p != nil {
			ch.Start = append(ch.Start, p)
		}
	case p.Owner != (Name{}):
		c.problem("pod %s: a pod of Deployment %s has that name", name, p.Owner)
	case p.Hash != hash:
		c.stop(p, ch) // when it is gone the next Sync starts it anew
	default:
		p.Object.Labels, p.Object.Annotations = obj.Labels, obj.Annotations
	}
}

func (c *Cluster) stop(p *Pod, ch *Changes) {
	if !p.Stopping {
		p.Stopping = true
		ch.Stop = append(ch.Stop, p)
	}
}

// place gives a pod its node, addresses and UID, and records it.
func (c *Cluster) place(obj *corev1.Pod, owner Name, hash string) *Pod {
	name := Name{obj.Namespace, obj.Name}
	num, err := c.schedule(obj, owner)
	if err != nil {
		c.problem("pod %s: %v", name, err)
		return nil
	}
	addrs, err := c.address(num)
	if err != nil {
		c.problem("pod %s: %v", name, err)
		return nil
	}
	c.serial++
	p := &Pod{Name: name, UID: newUID(), Node: c.nodes[num-1], NodeNum: num, Addrs: addrs, Object: obj,
		Owner: owner, Hash: hash, Created: time.Now(), serial: c.serial}
	obj.UID = types.UID(p.UID)
	obj.Spec.NodeName = p.Node
	if obj.Spec.ServiceAccountName == "" {
		obj.Spec.ServiceAccountName = "default"
	}
	obj.CreationTimestamp = metav1.NewTime(p.Created)
	c.pods[name] = p
	return p
}

// schedule picks a node: the one that the pod names, else the one with the
// fewest pods of the same owner, then of all.
func (c *Cluster) schedule(obj *corev1.Pod, owner Name) (int, error) {
	wanted := obj.Spec.NodeName
	if wanted == "" {
		wanted = obj.Spec.NodeSelector[corev1.LabelHostname]
	}
	if wanted != "" {
		i := slices.Index(c.nodes, wanted)
		if i < 0 {
			return 0, fmt.Errorf("there is no node %q, only %s", wanted, strings.Join(c.nodes, ", "))
		}
		return i + 1, nil
	}
	same, all := make([]int, len(c.nodes)), make([]int, len(c.nodes))
	for _, p := range c.pods {
		all[p.NodeNum-1]++
		if owner != (Name{}) && p.Owner == owner {
			same[p.NodeNum-1]++
		}
	}
	best := 0
	for i := range c.nodes {
		if same[i] < same[best] || same[i] == same[best] && all[i] < all[best] {
			best = i
		}
	}
	return best + 1, nil
}

// address returns the lowest free address of a node. An address that was just
// given back is taken last, so that nobody mistakes one pod for another.
func (c *Cluster) address(node int) (fabric.Pair, error) {
	taken := map[int]bool{}
	for _, p := range c.pods {
		if p.NodeNum == node {
			taken[int(p.Addrs.V4.As4()[3])] = true
		}
	}
	const first, count = 2, 253
	for i := range count {
		host := first + (c.serial+i)%count
		if !taken[host] {
			return fabric.PodAddrs(node, host), nil
		}
	}
	return fabric.Pair{}, fmt.Errorf("node %s is full: it has room for %d pods", c.nodes[node-1], count)
}

func (c *Cluster) problem(format string, args ...any) {
	c.problems = append(c.problems, fmt.Sprintf(format, args...))
}

// hashOf names a template: the same one always by the same word.
func hashOf(t corev1.PodTemplateSpec, restarts int) string {
	raw, err := json.Marshal(t)
	if err != nil {
		raw = []byte(err.Error())
	}
	return letters(fmt.Sprintf("%s/%d", raw, restarts), 8)
}

// alphabet is what Kubernetes uses for generated names: no vowels, no words.
const alphabet = "bcdfghjklmnpqrstvwxz2456789"

// letters hashes s to n letters.
func letters(s string, n int) string {
	h := fnv.New64a()
	h.Write([]byte(s))
	sum := h.Sum64()
	out := make([]byte, n)
	for i := range out {
		out[i] = alphabet[sum%uint64(len(alphabet))]
		sum /= uint64(len(alphabet))
	}
	return string(out)
}

// newUID returns a random UUID (RFC 9562, version 4).
func newUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
