//go:build kube

package installed

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/culvert-mesh/culvert/pkg/netns"
)

// way is a waypoint in front of the application's HTTP port. The route puts a header
// on every answer, so that none is mistaken that went past it.
const way = `
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: ` + stageNS + `}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: ` + stageNS + `, labels: {istio.io/use-waypoint: waypoint}}
spec: {selector: {app: steady}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: ` + stageNS + `}
spec:
  parentRefs: [{group: "", kind: Service, name: web, port: 80}]
  rules:
  - filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: x-way, value: taken}]}}]
    backendRefs: [{name: web, port: 80}]
`

// webLoad is a load of HTTP requests through the waypoint: half of the clients keep their
// connections, half make a new one for each request.
type webLoad struct {
	began  time.Time
	cancel context.CancelFunc
	all    sync.WaitGroup

	mu     sync.Mutex
	sent   int
	failed []string
}

const (
	webClients = 8
	webGap     = 100 * time.Millisecond // between two requests of a client
)

// openWay makes the waypoint, and returns the service's address when requests go
// through it.
func (s *stage) openWay() netip.AddrPort {
	s.t.Helper()
	apply(s.t, way)
	ip := must(s.t, "get", "service", "-n", stageNS, "web", "-o", "jsonpath={.spec.clusterIP}")
	to := netip.AddrPortFrom(netip.MustParseAddr(ip), 80)
	c := s.webClient(false)
	defer c.CloseIdleConnections()
	eventually(s.t, "requests go through the waypoint", func() error { return request(s.t.Context(), c, to) })
	return to
}

// webClient is a client in the client's pod.
func (s *stage) webClient(keep bool) *http.Client {
	dial := func(ctx context.Context, _, address string) (net.Conn, error) {
		to, err := netip.ParseAddrPort(address)
		if err != nil {
			return nil, err
		}
		c, err := s.client.Dial(ctx, to, netns.DialOptions{})
		if err != nil {
			return nil, err
		}
		return c, nil
	}
	return &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DialContext: dial, DisableKeepAlives: !keep}}
}

func request(ctx context.Context, c *http.Client, to netip.AddrPort) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+to.String()+"/", nil)
	if err != nil {
		return err
	}
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK || resp.Header.Get("x-way") != "taken" {
		return fmt.Errorf("%s, by the waypoint: %q", resp.Status, resp.Header.Get("x-way"))
	}
	return nil
}

func (s *stage) startWeb(to netip.AddrPort) *webLoad {
	ctx, cancel := context.WithCancel(context.WithoutCancel(s.t.Context()))
	w := &webLoad{began: time.Now(), cancel: cancel}
	for i := range webClients {
		c := s.webClient(i%2 == 0)
		w.all.Go(func() {
			defer c.CloseIdleConnections()
			w.run(ctx, c, to)
		})
	}
	return w
}

func (w *webLoad) run(ctx context.Context, c *http.Client, to netip.AddrPort) {
	tick := time.NewTicker(webGap)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		start := time.Now()
		err := request(context.WithoutCancel(ctx), c, to)
		w.mu.Lock()
		w.sent++
		if err != nil {
			w.failed = append(w.failed, fmt.Sprintf("at %s after %s: %v", short(start.Sub(w.began)), short(time.Since(start)), err))
		}
		w.mu.Unlock()
	}
}

// stop ends the load and tells what became of it.
func (w *webLoad) stop(r *row) {
	w.cancel()
	w.all.Wait()
	r.note("%d of %d requests through the waypoint failed", len(w.failed), w.sent)
	if len(w.failed) > 0 {
		r.miss("%d requests through the waypoint failed: %s", len(w.failed), strings.Join(w.failed[:min(3, len(w.failed))], ", "))
	}
	if w.sent == 0 {
		r.miss("no request was sent through the waypoint")
	}
}

// rollWaypoint replaces the waypoint's pod.
func rollWaypoint(s *stage, r *row) {
	w := s.startWeb(s.openWay())
	defer w.stop(r)
	time.Sleep(time.Second)
	s.restartWaypoint(r)
	time.Sleep(2 * time.Second)
}

// restartWaypoint returns when the old pod has gone.
func (s *stage) restartWaypoint(r *row) {
	const selector = "gateway.networking.k8s.io/gateway-name=waypoint"
	was := s.podsOf(stageNS, selector)
	start := time.Now()
	must(s.t, "rollout", "restart", "-n", stageNS, "deployment/waypoint")
	s.await("the old waypoint has gone", func() bool {
		now := s.podsOf(stageNS, selector)
		return len(now) > 0 && now[0].ready() && !slices.ContainsFunc(now, func(p podState) bool {
			return slices.ContainsFunc(was, func(q podState) bool { return q.Metadata.UID == p.Metadata.UID })
		})
	})
	r.took("the old waypoint was gone after", time.Since(start), 0)
}

// rollEverything replaces every program of the mesh at once, as an upgrade does.
func rollEverything(s *stage, r *row) {
	w := s.startWeb(s.openWay())
	defer w.stop(r)
	time.Sleep(time.Second)
	for _, what := range []string{"deployment/culvert-controlplane", "daemonset/culvert-cni"} {
		must(s.t, "rollout", "restart", "-n", system, what)
	}
	rollProxies(s, r)
	s.restartWaypoint(r)
	for _, what := range []string{"deployment/culvert-controlplane", "daemonset/culvert-cni"} {
		must(s.t, "rollout", "status", "-n", system, what, "--timeout=90s")
	}
	time.Sleep(5 * time.Second)
}

// rollBesideWaypoint replaces the ztunnels while the waypoint keeps connections to the
// server that nothing uses: when the load has ended, the old ztunnels have to end too.
func rollBesideWaypoint(s *stage, r *row) {
	to := s.openWay()
	w := s.startWeb(to)
	time.Sleep(time.Second)
	w.stop(r)
	rollProxies(s, r)
	if err := request(s.t.Context(), s.webClient(false), to); err != nil {
		r.miss("through the new ztunnels: %v", err)
	}
	var end time.Time
	r.stopped = func() { end = time.Now() }
	r.ended = func() { r.took("the old ztunnels ended after the load in", time.Since(end), 0) }
}
