package app

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/culvert-mesh/culvert/cni-plugin/enroll"
	"github.com/culvert-mesh/culvert/cni-plugin/podns"
	"github.com/culvert-mesh/culvert/cni-plugin/proof"
	"github.com/culvert-mesh/culvert/pkg/handover"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netns"
)

// server answers the runtime and people.
type server struct {
	agent   *Agent
	metrics http.Handler
	logging http.Handler // log levels; nil = not served
	plugin  func() error // why the CNI plugin is not installed; nil = that is nobody's affair
}

// addRequest is what a CNI plugin sends when a pod's namespace is ready.
type addRequest struct {
	Netns        string
	PodName      string
	PodNamespace string
	PodUID       string // "" when the runtime does not say
	ContainerID  string // of the sandbox
	IPs          []addrConfig
}

type addrConfig struct {
	Interface *int
	Address   struct {
		IP   string
		Mask []byte
	}
	Gateway string
}

// delRequest says that a pod's namespace goes away. Runtimes say it again when they
// clean up, up to minutes later: then a pod may run that has the same name, or the
// same pod in another sandbox.
type delRequest struct {
	PodName      string
	PodNamespace string
	PodUID       string
	ContainerID  string
}

// answerTimeout is what a CNI plugin waits; the answer has to be there before.
const answerTimeout = 4500 * time.Millisecond

// local is what the unix socket answers: also what changes pods.
func (s *server) local() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", s.public())
	mux.HandleFunc("POST /cmdadd", s.cmdAdd)
	mux.HandleFunc("POST /cmddel", s.cmdDel)
	if s.logging != nil {
		mux.Handle("/logging", s.logging)
	}
	return mux
}

// public is what may be seen from outside.
func (s *server) public() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /readyz", s.ready)
	mux.HandleFunc("GET /status", s.status)
	mux.Handle("GET /metrics", s.metrics)
	return mux
}

func (s *server) runUnix(ctx context.Context) error {
	path := s.agent.cfg.Socket
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("listen %s: %w", path, err)
	}
	next := path + ".new"
	os.Remove(next)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: next, Net: "unix"})
	if err != nil {
		return err
	}
	l.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(next, 0o600), os.Rename(next, path)); err != nil {
		l.Close()
		return fmt.Errorf("listen %s: %w", path, err)
	}
	return serveHTTP(ctx, l, s.local())
}

func (s *server) runTCP(ctx context.Context) error {
	var own *netns.NS
	l, err := own.Listen(ctx, s.agent.cfg.AdminListen, netns.ListenOptions{ReusePort: true})
	if err != nil {
		return err
	}
	return serveHTTP(ctx, l, s.public())
}

// serveHTTP serves until ctx ends, and then lets requests finish.
func serveHTTP(ctx context.Context, l net.Listener, h http.Handler) error {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		end, cancel := context.WithTimeout(context.Background(), answerTimeout)
		defer cancel()
		srv.Shutdown(end)
	})
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		stop()
		return err
	}
	<-stopped
	return nil
}

func (s *server) ready(w http.ResponseWriter, _ *http.Request) {
	if !s.agent.Ready() {
		http.Error(w, "pods of this node not known yet", http.StatusServiceUnavailable)
		return
	}
	if why := s.notInstalled(); why != "" { // new pods would start outside the mesh and join a moment later
		http.Error(w, "CNI plugin not installed: "+why, http.StatusServiceUnavailable)
		return
	}
	io.WriteString(w, "ok\n")
}

// notInstalled is why the runtime does not call the CNI plugin, or "".
func (s *server) notInstalled() string {
	if s.plugin == nil {
		return ""
	}
	if err := s.plugin(); err != nil {
		return err.Error()
	}
	return ""
}

// cmdAdd joins a pod that starts. 200: it may start, captured or outside the mesh;
// 400: the request is wrong; 503: try again.
func (s *server) cmdAdd(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), answerTimeout)
	defer cancel()
	var req addRequest
	code, err := http.StatusOK, decodeBody(r, &req)
	var d enroll.Decision
	if err != nil {
		code = http.StatusBadRequest
	} else if d, err = s.agent.announce(ctx, req); err != nil {
		code = http.StatusServiceUnavailable
	}
	s.agent.parts.Metrics.cmdAdds.WithLabelValues(strconv.Itoa(code)).Inc()
	if err != nil {
		s.agent.log.Warn("pod announced by the runtime not joined", "pod", req.PodNamespace+"/"+req.PodName, "error", err)
		http.Error(w, err.Error(), code)
		return
	}
	writeJSON(w, map[string]any{"inMesh": d.InMesh, "reason": d.Reason})
}

// cmdDel lets go of a pod whose namespace the runtime takes down.
func (s *server) cmdDel(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), answerTimeout)
	defer cancel()
	var req delRequest
	if err := decodeBody(r, &req); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if err := s.agent.renounce(ctx, req); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	writeJSON(w, map[string]any{})
}

func decodeBody(r *http.Request, v any) error {
	if err := json.NewDecoder(io.LimitReader(r.Body, 1<<20)).Decode(v); err != nil {
		return fmt.Errorf("request body: %w", err)
	}
	return nil
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v)
}

// provesNode is why a pod that is none is outside the mesh: it is our own.
const provesNode enroll.Reason = "the node is proven by it"

// announce joins the pod in the namespace that the runtime has made for it.
func (a *Agent) announce(ctx context.Context, req addRequest) (enroll.Decision, error) {
	if req.PodName == proof.PodName && a.cfg.Prove && req.PodNamespace == cmp.Or(a.cfg.Namespace, "culvert-system") {
		a.provenPod.Store(true)
		return enroll.Decision{Reason: provesNode}, nil
	}
	p, err := a.find(ctx, req.PodNamespace, req.PodName, req.PodUID)
	if err != nil {
		return enroll.Decision{}, err
	}
	if err := p.lock(ctx); err != nil {
		return enroll.Decision{}, err
	}
	defer p.unlock()
	w := a.wanted(p)
	d := w.decision
	p.torn, p.sandbox = false, req.ContainerID
	if !d.InMesh {
		return d, nil
	}
	ns, err := netns.Open(req.Netns)
	if err != nil {
		return d, err
	}
	ips := req.addresses()
	if err := podns.Check(ns, ips); err != nil {
		ns.Close()
		return d, err
	}
	p.adopt(ns)
	p.ips, p.steps = ips, steps{} // no program of it runs yet: it is captured whole
	if w.refused && p.state == enrolled {
		p.state = pending
	}
	err = p.join(ctx, w.spec, d.Capture)
	p.show(err)
	p.poke() // its goroutine goes on trying, and notices what changed meanwhile
	return d, err
}

// renounce forgets the namespace of a pod that the runtime takes down.
func (a *Agent) renounce(ctx context.Context, req delRequest) error {
	a.mu.Lock()
	var p *pod
	for _, q := range a.pods {
		if q.called(req.PodNamespace, req.PodName, req.PodUID) {
			p = q
		}
	}
	a.mu.Unlock()
	if p == nil {
		return nil
	}
	if err := p.lock(ctx); err != nil {
		return err
	}
	defer p.unlock()
	if p.sandbox != "" && req.ContainerID != "" && p.sandbox != req.ContainerID {
		return nil
	}
	p.torn = true
	err := p.drop(ctx)
	p.show(err)
	return err
}

// addresses returns the pod's addresses, as far as they are told.
func (r addRequest) addresses() []netip.Addr {
	var ips []netip.Addr
	for _, c := range r.IPs {
		ip, _, _ := strings.Cut(c.Address.IP, "/")
		if a, err := netip.ParseAddr(ip); err == nil {
			ips = append(ips, a.Unmap())
		}
	}
	return ips
}

// Status is the agent as people see it.
type Status struct {
	Node     string      `json:"node"`
	Ready    bool        `json:"ready"`
	Ztunnels int         `json:"ztunnels"`
	Plugin   string      `json:"plugin,omitempty"` // why the CNI plugin is not installed
	Pods     []PodStatus `json:"pods"`
	// Proxies are the ztunnels that use the handover store, the oldest first.
	Proxies []handover.ClientStatus `json:"proxies,omitempty"`
	Sockets int                     `json:"sockets"` // held for their successors
}

// PodStatus is one pod in Status.
type PodStatus struct {
	UID       mesh.PodUID   `json:"uid"`
	Namespace string        `json:"namespace"`
	Name      string        `json:"name"`
	InMesh    bool          `json:"inMesh"` // whether it should be
	Reason    enroll.Reason `json:"reason"`
	State     string        `json:"state"` // out, pending, enrolled, leaving
	Error     string        `json:"error,omitempty"`
	IPs       []netip.Addr  `json:"ips,omitempty"`
}

// Status returns how things stand.
func (a *Agent) Status() Status {
	st := Status{Node: a.cfg.Node, Ready: a.Ready(), Ztunnels: a.zds.Connected(), Pods: []PodStatus{}}
	st.Proxies = a.store.Clients()
	_, st.Sockets = a.store.Held()
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range a.pods {
		d := a.decideLocked(p.spec)
		st.Pods = append(st.Pods, PodStatus{p.uid, p.spec.Namespace, p.spec.Name, d.InMesh, d.Reason, p.shown.String(), p.lastErr, p.spec.IPs})
	}
	slices.SortFunc(st.Pods, func(x, y PodStatus) int {
		return strings.Compare(x.Namespace+"/"+x.Name+"/"+string(x.UID), y.Namespace+"/"+y.Name+"/"+string(y.UID))
	})
	return st
}

func (s *server) status(w http.ResponseWriter, _ *http.Request) {
	st := s.agent.Status()
	st.Plugin = s.notInstalled()
	writeJSON(w, st)
}
