package laptop

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netns"
)

// maxAdminBody bounds what is handed on to an admin port, in bytes.
const maxAdminBody = 1 << 20

// serveAdmin hands a request on to the admin port of a component: "ztunnel-NODE",
// "agent-NODE", "controlplane", or a waypoint's pod "NAMESPACE/NAME".
func (m *Mesh) serveAdmin(w http.ResponseWriter, r *http.Request) {
	target, path := r.URL.Query().Get("target"), r.URL.Query().Get("path")
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxAdminBody))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if node, ok := strings.CutPrefix(target, "agent-"); ok {
		m.askAgent(w, r, node, path)
		return
	}
	ns, release, err := m.namespaceOf(r.Context(), target)
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	defer release()
	answer, status, err := askInside(r.Context(), ns, mesh.PortAdmin, r.Method, path, body)
	if err != nil {
		http.Error(w, fmt.Sprintf("ask %s: %v", target, err), http.StatusBadGateway)
		return
	}
	w.WriteHeader(status)
	_, _ = w.Write(answer)
}

// askAgent hands a request on to a node agent, which answers on its socket.
func (m *Mesh) askAgent(w http.ResponseWriter, r *http.Request, node, path string) {
	req, err := http.NewRequestWithContext(r.Context(), r.Method, "http://agent"+path, nil)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	transport := unixTransport(m.dir.AgentSocket(node))
	transport.DisableKeepAlives = true
	resp, err := transport.RoundTrip(req)
	if err != nil {
		http.Error(w, fmt.Sprintf("ask agent-%s: %v", node, err), http.StatusBadGateway)
		return
	}
	defer resp.Body.Close()
	w.WriteHeader(resp.StatusCode)
	_, _ = io.Copy(w, resp.Body)
}

// namespaceOf returns where a component's admin port is.
func (m *Mesh) namespaceOf(ctx context.Context, target string) (ns *netns.NS, release func(), err error) {
	none := func() {}
	if target == controlPlaneName {
		return m.fabric.ControlPlane, none, nil
	}
	for _, n := range m.fabric.Nodes {
		if target == ztunnelName(n.Name) {
			return n.NS, none, nil
		}
	}
	st, err := m.Status(ctx)
	if err != nil {
		return nil, nil, err
	}
	for _, p := range st.Pods {
		if p.Mesh == MeshWaypoint && p.Namespace+"/"+p.Name == target {
			ns, err := netns.Open(m.fabric.PodPath(p.UID))
			if err != nil {
				return nil, nil, err
			}
			return ns, func() { ns.Close() }, nil
		}
	}
	return nil, nil, fmt.Errorf("%q is no component: want controlplane, ztunnel-NODE, agent-NODE or the pod of a waypoint", target)
}

// askInside makes one HTTP request to a port of a namespace's loopback.
func askInside(ctx context.Context, ns *netns.NS, port uint16, method, path string, body []byte) ([]byte, int, error) {
	at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return ns.Dial(ctx, at, netns.DialOptions{})
	}}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+at.String()+path, bytes.NewReader(body))
	if err != nil {
		return nil, 0, err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, 0, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	return answer, resp.StatusCode, err
}

// Admin asks a component on its admin port. What it answers with another status
// than 200 is an error.
func (c *Client) Admin(ctx context.Context, target, method, path string, body []byte) ([]byte, error) {
	q := url.Values{"target": {target}, "path": {path}}
	req, err := http.NewRequestWithContext(ctx, method, "http://culvert/admin?"+q.Encode(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.explain(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(string(bytes.TrimSpace(answer)))
	}
	return answer, err
}

// Listens reports whether anything in the network namespace of a process listens
// on a TCP port.
func Listens(pid int, port uint16) (bool, error) {
	_, all, err := listeners(pid, port)
	return all > 0, err
}
