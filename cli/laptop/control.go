package laptop

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/culvert-mesh/culvert/cli/laptop/cluster"
	"github.com/culvert-mesh/culvert/cli/laptop/supervise"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netns"
)

// serveControl answers the verbs of the command line on the control socket.
func (m *Mesh) serveControl(ctx context.Context) error {
	l, err := net.Listen("unix", m.dir.Socket())
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ps", answer(func(r *http.Request) (any, error) { return m.Status(r.Context()) }))
	mux.HandleFunc("GET /certs", answer(func(r *http.Request) (any, error) { return m.certs(r.Context()) }))
	mux.HandleFunc("/admin", m.serveAdmin)
	mux.HandleFunc("POST /restart", answer(func(r *http.Request) (any, error) {
		return m.Restart(r.Context(), r.URL.Query().Get("target"))
	}))
	mux.HandleFunc("POST /down", answer(func(*http.Request) (any, error) {
		m.Stop()
		return "stopping", nil
	}))
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() {
		soon, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if srv.Shutdown(soon) != nil {
			srv.Close()
		}
	})
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// answer turns a function into a handler: its value as JSON, its error as text.
func answer(f func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v, err := f(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v)
	}
}

// HeldCerts is what one proxy holds, in its own words: a node's ztunnel, or a
// waypoint's pod.
type HeldCerts struct {
	Node         string          `json:"node"`
	Proxy        string          `json:"proxy"`
	Certificates json.RawMessage `json:"certificates,omitempty"`
	Error        string          `json:"error,omitempty"`
}

func (m *Mesh) certs(ctx context.Context) ([]HeldCerts, error) {
	var out []HeldCerts
	for _, n := range m.fabric.Nodes {
		out = append(out, certsAt(ctx, n.NS, HeldCerts{Node: n.Name, Proxy: ztunnelName(n.Name)}))
	}
	st, err := m.Status(ctx)
	if err != nil {
		return nil, err
	}
	for _, p := range st.Pods {
		if p.Mesh != MeshWaypoint {
			continue
		}
		held := HeldCerts{Node: p.Node, Proxy: p.Namespace + "/" + p.Name}
		ns, err := netns.Open(m.fabric.PodPath(p.UID))
		if err != nil {
			held.Error = err.Error()
			out = append(out, held)
			continue
		}
		out = append(out, certsAt(ctx, ns, held))
		ns.Close()
	}
	return out, nil
}

// certsAt asks the proxy whose admin port is in the namespace.
func certsAt(ctx context.Context, ns *netns.NS, c HeldCerts) HeldCerts {
	body, status, err := getInside(ctx, ns, mesh.PortAdmin, "/config_dump")
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("%s: HTTP status %d", c.Proxy, status)
	}
	var dump struct {
		Certificates json.RawMessage `json:"certificates"`
	}
	if err == nil {
		err = json.Unmarshal(body, &dump)
	}
	if err != nil {
		c.Error = err.Error()
	}
	c.Certificates = dump.Certificates
	return c
}

// Restart replaces what target names: "ztunnel", "ztunnel/node-1", "agent",
// "controlplane", or a Deployment "namespace/name".
func (m *Mesh) Restart(ctx context.Context, target string) ([]string, error) {
	kind, name, _ := strings.Cut(target, "/")
	var units []string
	switch {
	case m.unit(target) != nil: // the name that ps shows
		units = []string{target}
	case kind == "ztunnel" || kind == "agent":
		for _, n := range m.nodes {
			if name == "" || name == n {
				units = append(units, kind+"-"+n)
			}
		}
	case name != "":
		return []string{target}, m.restartDeployment(ctx, cluster.Name{Namespace: kind, Name: name})
	}
	if len(units) == 0 {
		return nil, fmt.Errorf("restart %q: want ztunnel, ztunnel/NODE, agent, agent/NODE, controlplane or NAMESPACE/DEPLOYMENT", target)
	}
	for _, u := range units {
		if err := m.restartUnit(ctx, u); err != nil {
			return nil, err
		}
	}
	return units, nil
}

// restartUnit replaces a ztunnel without a gap, and everything else, and another
// program that may not share its ports, with one.
func (m *Mesh) restartUnit(ctx context.Context, name string) error {
	u := m.unit(name)
	node, isZtunnel := strings.CutPrefix(name, "ztunnel-")
	m.event(name, "being replaced")
	if isZtunnel && m.cfg.Ztunnels[node] == "" && u.Status().State == supervise.Ready {
		return u.Replace(ctx)
	}
	if err := u.Restart(ctx); err != nil {
		return err
	}
	return u.WaitReady(ctx)
}

// restartDeployment rolls a Deployment's pods, and waits until the new ones serve.
func (m *Mesh) restartDeployment(ctx context.Context, name cluster.Name) error {
	found := false
	var before []string
	err := m.do(ctx, func() {
		for _, p := range m.state.cluster.Pods() {
			if p.Owner == name {
				before = append(before, p.UID)
			}
		}
		found = m.state.cluster.RestartDeployment(name)
	})
	if err == nil && !found {
		err = fmt.Errorf("restart %s: there is no such Deployment", name)
	}
	for err == nil {
		gone := true
		err = m.do(ctx, func() {
			for _, p := range m.state.cluster.Pods() {
				for _, uid := range before {
					gone = gone && (p.UID != uid || p.Stopping)
				}
			}
		})
		if gone {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
	}
	return err
}

// Client talks to a running mesh over its control socket.
type Client struct {
	name string
	dir  Dir
	http *http.Client
}

// NewClient returns a Client of the mesh of that name.
func NewClient(name string) (*Client, error) {
	dir, err := DirOf(name)
	if err != nil {
		return nil, err
	}
	return &Client{name: name, dir: dir, http: &http.Client{Transport: unixTransport(dir.Socket())}}, nil
}

// Dir returns the mesh's state folder.
func (c *Client) Dir() Dir { return c.dir }

// Status asks for the mesh's status.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	st := new(Status)
	return st, c.do(ctx, http.MethodGet, "/ps", st)
}

// Certs asks every proxy for its certificates.
func (c *Client) Certs(ctx context.Context) (out []HeldCerts, err error) {
	return out, c.do(ctx, http.MethodGet, "/certs", &out)
}

// Restart replaces a component or a Deployment's pods.
func (c *Client) Restart(ctx context.Context, target string) (names []string, err error) {
	return names, c.do(ctx, http.MethodPost, "/restart?target="+url.QueryEscape(target), &names)
}

// Down tells the mesh to end.
func (c *Client) Down(ctx context.Context) error {
	var s string
	return c.do(ctx, http.MethodPost, "/down", &s)
}

func (c *Client) do(ctx context.Context, method, path string, into any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://culvert"+path, nil)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return c.explain(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return errors.New(string(bytes.TrimSpace(body)))
	}
	return json.Unmarshal(body, into)
}

// ErrNotRunning says that there is no mesh of that name.
var ErrNotRunning = errors.New("is not running")

func (c *Client) explain(err error) error {
	gone := false
	for _, e := range []error{fs.ErrNotExist, syscall.ECONNREFUSED, syscall.ECONNRESET, io.EOF} {
		gone = gone || errors.Is(err, e)
	}
	switch {
	case errors.Is(err, fs.ErrPermission):
		return WithHint(err, "run it with sudo")
	case !gone:
		return err
	}
	hint := "start one with: culvert up FOLDER"
	if names := Names(); len(names) > 0 {
		hint = "running: " + strings.Join(names, ", ") + " (choose with --name)"
	}
	if _, err := os.Stat(string(c.dir)); err == nil && !c.dir.Running() {
		hint = "it died; remove what it left with: culvert down --name " + c.name
	}
	return WithHint(fmt.Errorf("mesh %q %w", c.name, ErrNotRunning), "%s", hint)
}
