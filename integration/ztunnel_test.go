// Package integration holds tests of whole programs: real processes, namespaces,
// redirection and traffic.
package integration

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/pkg/certs"
	"github.com/culvert-mesh/culvert/pkg/certs/selfsigned"
	"github.com/culvert-mesh/culvert/pkg/hbone"
	"github.com/culvert-mesh/culvert/pkg/hbone/h2"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netns"
	"github.com/culvert-mesh/culvert/pkg/netns/netnstest"
	"github.com/culvert-mesh/culvert/pkg/relay"
	"github.com/culvert-mesh/culvert/pkg/wire/authz"
	"github.com/culvert-mesh/culvert/pkg/wire/workload"
	"github.com/culvert-mesh/culvert/pkg/xds/xdstest"
)

// pair is the usual field: a client on one node, servers on another, and a pod
// that the mesh does not know.
type pair struct {
	*field
	client, server, guarded, stranger *pod
	z1, z2                            *ztunnel
	a1, a2                            *agent
}

func newPair(t *testing.T) *pair {
	t.Helper()
	f := newField(t)
	p := &pair{field: f, stranger: f.outside("stranger")}
	p.client = f.pod("client", "node-1")
	p.server = f.pod("server", "node-2", `services: {default/echo.default.svc.cluster.local: {80: 7000}}`)
	p.guarded = f.pod("guarded", "node-2", `authorizationPolicies: ["default/only-friends"]`)
	f.pod("dead", "node-2", `services: {default/echo.default.svc.cluster.local: {80: 7000}}`)
	f.service("echo", "10.99.0.1", "{80: 7000}")
	f.allow("only-friends", "friend")
	p.server.listen(t, 7000, echo)
	p.guarded.listen(t, 7000, echo)
	p.stranger.listen(t, 7000, echo)
	p.a1 = f.agent("node-1", p.client)
	p.a2 = f.agent("node-2", p.server, p.guarded)
	p.z1 = f.ztunnel("node-1", p.a1, nil)
	p.z2 = f.ztunnel("node-2", p.a2, nil)
	return p
}

func TestZtunnel(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	fds, routines := p.z2.descriptors(), p.z2.goroutines()

	t.Run("tunnel", p.tunnel)
	t.Run("service", p.serviceAddress)
	t.Run("plaintext", p.plaintext)
	t.Run("denied", p.denied)
	t.Run("passthrough", p.passthrough)
	t.Run("refused", p.refused)
	t.Run("own ports", p.ownPorts)
	t.Run("half-close", p.halfClose)
	t.Run("server dies", p.serverDies)
	t.Run("garbage", p.garbage)
	t.Run("foreign authority", p.foreignAuthority)
	t.Run("wrong trust domain", p.wrongTrustDomain)
	t.Run("no certificate", p.noCertificate)
	t.Run("metrics", p.metrics)

	p.z2.until("descriptors to be given back", func() bool { return p.z2.descriptors() <= fds+10 }) // the pooled tunnels
	p.z2.until("goroutines to end", func() bool { return p.z2.goroutines() <= routines+20 })
}

func (p *pair) tunnel(t *testing.T) {
	for _, ip := range []netip.Addr{p.server.IP4, p.server.IP6} {
		from := p.client.exchange(t, ip, 7000)
		if want := p.client.IP4.String(); ip.Is4() && from != want {
			t.Errorf("the server saw %s, want the client's own address %s", from, want)
		}
		if want := p.client.IP6.String(); ip.Is6() && from != want {
			t.Errorf("the server saw %s, want the client's own address %s", from, want)
		}
		hbone := netip.AddrPortFrom(ip, mesh.PortHBONE).String()
		both := `src.identity="?spiffe://cluster.local/ns/default/sa/client"? .*dst.identity="?spiffe://cluster.local/ns/default/sa/server"?`
		p.z1.wantLog(`connection complete.*dst.addr="?` + quote(hbone) + `"?.*`)
		p.z1.wantLog(both + `.*direction="?outbound`)
		p.z2.wantLog(both + `.*direction="?inbound"? bytes_sent="?1[0-9]"? bytes_recv="?5"?`)
	}
}

func quote(s string) string {
	return strings.NewReplacer(".", `\.`, "[", `\[`, "]", `\]`).Replace(s)
}

// serviceAddress also holds that the endpoint that nobody serves is passed over.
func (p *pair) serviceAddress(t *testing.T) {
	vip := netip.MustParseAddr("10.99.0.1")
	for range 10 {
		p.client.exchange(t, vip, 80)
	}
	p.z1.wantLog(`dst.service="?echo.default.svc.cluster.local`)
	p.server.exchange(t, vip, 80) // itself
	p.server.exchange(t, p.server.IP4, 7000)
	p.client.wantReset(t, vip, 81)
	p.z1.wantLog(`no healthy upstream: 10\.99\.0\.1:81`)
}

func (p *pair) plaintext(t *testing.T) {
	for _, ip := range []netip.Addr{p.server.IP4, p.server.IP6} {
		from := p.stranger.exchange(t, ip, 7000)
		if from != p.stranger.IP4.String() && from != p.stranger.IP6.String() {
			t.Errorf("the server saw %s", from)
		}
	}
	p.z2.wantLog(`src.addr="?` + quote(p.stranger.IP4.String()) + `:[0-9]+"? .*direction="?inbound`)
}

func (p *pair) denied(t *testing.T) {
	p.client.wantReset(t, p.guarded.IP4, 7000)
	p.stranger.wantReset(t, p.guarded.IP4, 7000)
	p.z2.wantLog(`allow policies exist, but none allowed`)
	p.z1.wantLog(`http status: 401`)
}

func (p *pair) passthrough(t *testing.T) {
	p.client.exchange(t, p.stranger.IP4, 7000)
	p.client.exchange(t, p.stranger.IP6, 7000)
	p.z1.wantLog(`dst.addr="?` + quote(p.stranger.IP4.String()) + `:7000`)
}

func (p *pair) refused(t *testing.T) {
	p.client.wantReset(t, p.stranger.IP4, 9) // plain
	p.client.wantReset(t, p.server.IP4, 9)   // tunnelled: the far side answers 503
	p.stranger.wantReset(t, p.server.IP4, 9) // plaintext in
	p.z1.wantLog(`connection refused`)
	p.z1.wantLog(`http status: 503`)
}

// ownPorts holds that nothing reaches a ztunnel's ports through a ztunnel.
func (p *pair) ownPorts(t *testing.T) {
	for _, port := range []uint16{mesh.PortOutbound, mesh.PortPlaintext, mesh.PortHBONE} {
		p.client.wantReset(t, p.server.IP4, port)
		if port != mesh.PortHBONE { // which is open to everybody, and speaks TLS only
			p.client.wantReset(t, p.client.IP4, port)
			p.stranger.wantReset(t, p.server.IP4, port)
		}
	}
}

// halfClose sends a large random payload both ways at once, each direction ending
// on its own.
func (p *pair) halfClose(t *testing.T) {
	const size = 64 << 20
	sums := make(chan [2][32]byte, 1)
	p.server.listen(t, 7001, func(c *net.TCPConn) {
		sent, got := pour(t, c, size, 2)
		sums <- [2][32]byte{sent, got}
	})
	c := p.client.dial(t, p.server.IP4, 7001)
	c.SetDeadline(time.Now().Add(3 * patience))
	sent, got := pour(t, c, size, 1)
	there := <-sums
	if sent != there[1] || got != there[0] {
		t.Error("a payload has changed on its way")
	}

	// One direction ends long before the other begins.
	p.server.listen(t, 7002, func(c *net.TCPConn) {
		text, _ := io.ReadAll(c)
		fmt.Fprintf(c, "%d", len(text))
	})
	c = p.client.dial(t, p.server.IP6, 7002)
	c.Write(make([]byte, 1000))
	c.CloseWrite()
	if answer, err := io.ReadAll(c); string(answer) != "1000" || err != nil {
		t.Errorf("after a half-close: %q, %v", answer, err)
	}
}

// pour writes size random bytes and reads to the end, and returns both sums.
func pour(t *testing.T, c *net.TCPConn, size int64, seed uint64) (sent, got [32]byte) {
	var done sync.WaitGroup
	done.Go(func() {
		h := sha256.New()
		src := rand.NewChaCha8([32]byte{byte(seed)})
		if _, err := io.Copy(io.MultiWriter(c, h), io.LimitReader(src, size)); err != nil {
			t.Errorf("send: %v", err)
		}
		c.CloseWrite()
		sent = [32]byte(h.Sum(nil))
	})
	h := sha256.New()
	if n, err := io.Copy(h, c); n != size || err != nil {
		t.Errorf("received %d of %d bytes: %v", n, size, err)
	}
	got = [32]byte(h.Sum(nil))
	done.Wait()
	return sent, got
}

// serverDies holds that a client learns of a server that goes away mid-stream.
func (p *pair) serverDies(t *testing.T) {
	p.server.listen(t, 7003, func(c *net.TCPConn) {
		io.ReadFull(c, make([]byte, 5))
		c.SetLinger(0)
	})
	c := p.client.dial(t, p.server.IP4, 7003)
	io.WriteString(c, "hello")
	if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil || isTimeout(err) {
		t.Errorf("read %d bytes and %v from a server that has gone", n, err)
	}
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// garbage holds that what is no TLS on 15008 harms nobody.
func (p *pair) garbage(t *testing.T) {
	for _, text := range []string{"GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\xff\xff\x00\x00", strings.Repeat("\xff", 70000)} {
		c := p.stranger.dial(t, p.server.IP4, mesh.PortHBONE)
		io.WriteString(c, text)
		c.CloseWrite()
		if _, err := io.Copy(io.Discard, c); isTimeout(err) {
			t.Errorf("%.10q is not refused", text)
		}
		c.Close()
	}
	p.client.exchange(t, p.server.IP4, 7000)
	p.z2.wantLog(`TLS handshake failed`)
}

// knock opens a tunnel to the server from outside, under any identity.
func (p *pair) knock(t *testing.T, id mesh.Identity, authority string) error {
	t.Helper()
	cache := certs.Fixed{}
	svid, err := selfsigned.Fixed(selfsigned.WithLog(slog.New(slog.DiscardHandler))).Issue(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	cache[id] = svid
	pool := h2.NewPool(h2.PoolConfig{
		Dial: func(ctx context.Context, to netip.AddrPort) (*net.TCPConn, error) {
			return p.stranger.NS.Dial(ctx, to, netns.DialOptions{})
		},
		TLS: func(ctx context.Context, to hbone.Peer) (*tls.Config, error) {
			return certs.ClientTLS(ctx, cache, to.Source, to.Expect)
		},
	})
	defer pool.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s, _, err := pool.Open(ctx, hbone.Peer{
		Source: id, Addr: netip.AddrPortFrom(p.server.IP4, mesh.PortHBONE), LocalIP: p.stranger.IP4,
		Expect: []mesh.Identity{{TrustDomain: "cluster.local", Namespace: "default", ServiceAccount: "server"}},
	}, hbone.Request{Authority: authority})
	if s != nil {
		s.Close()
	}
	return err
}

func (p *pair) foreignAuthority(t *testing.T) {
	friend := mesh.Identity{TrustDomain: "cluster.local", Namespace: "default", ServiceAccount: "friend"}
	if err := p.knock(t, friend, netip.AddrPortFrom(p.server.IP4, 7000).String()); err != nil {
		t.Errorf("the pod's own address: %v", err)
	}
	for authority, want := range map[string]int{
		netip.AddrPortFrom(p.client.IP4, 7000).String():  400,
		netip.AddrPortFrom(p.server.IP4, 15006).String(): 503,
		"127.0.0.1:7000":                    400,
		"nonsense":                          400,
		"echo.default.svc.cluster.local:81": 503,
	} {
		err := p.knock(t, friend, authority)
		var status *hbone.StatusError
		if !errors.As(err, &status) || status.Status != want {
			t.Errorf("authority %q: %v, want status %d", authority, err, want)
		}
	}
	if err := p.knock(t, friend, "echo.default.svc.cluster.local:80"); err != nil {
		t.Errorf("a service of the pod: %v", err)
	}
}

func (p *pair) wrongTrustDomain(t *testing.T) {
	err := p.knock(t, mesh.Identity{TrustDomain: "evil.example", Namespace: "default", ServiceAccount: "friend"},
		netip.AddrPortFrom(p.server.IP4, 7000).String())
	var status *hbone.StatusError
	if err == nil || errors.As(err, &status) {
		t.Errorf("a client of another trust domain: %v", err)
	}
	p.z2.wantLog(`trust domain not accepted`)
}

func (p *pair) noCertificate(t *testing.T) {
	c := p.stranger.dial(t, p.server.IP4, mesh.PortHBONE)
	tc := tls.Client(c, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err := tc.Handshake(); err == nil { // TLS 1.3: the refusal comes with the first read
		if _, err := io.Copy(io.Discard, tc); err == nil || isTimeout(err) {
			t.Errorf("a client without certificate: %v", err)
		}
	}
}

func (p *pair) metrics(t *testing.T) {
	for _, m := range []struct {
		z      *ztunnel
		name   string
		labels []string
	}{
		{p.z1, "istio_tcp_connections_opened_total", []string{`reporter="source"`, `source_workload="client"`, `destination_workload="server"`,
			`connection_security_policy="mutual_tls"`, `source_principal="spiffe://cluster.local/ns/default/sa/client"`}},
		{p.z2, "istio_tcp_connections_opened_total", []string{`reporter="destination"`, `source_workload="client"`, `destination_workload="server"`}},
		{p.z2, "istio_tcp_connections_failed_total", []string{`response_flags="DENY"`}},
		{p.z1, "istio_tcp_received_bytes_total", []string{`destination_service="echo.default.svc.cluster.local"`}},
		{p.z2, "istio_build", []string{`component="ztunnel"`}},
	} {
		if m.z.metric(m.name, m.labels...) == 0 {
			t.Errorf("no %s with %v in\n%s", m.name, m.labels, m.z.get("http://127.0.0.1:15020/metrics"))
		}
	}
	dump := p.z1.get("http://127.0.0.1:15000/config_dump")
	for _, want := range []string{`"workloadState"`, `"uid-client"`, `"state": "Up"`, `"certificates"`, `spiffe://cluster.local/ns/default/sa/client`} {
		if !strings.Contains(dump, want) {
			t.Errorf("config_dump has no %s", want)
		}
	}
}

// TestZtunnelDrain replaces the server's ztunnel and then the client's under load:
// no new connection fails, and the open ones that end in time are whole.
func TestZtunnelDrain(t *testing.T) {
	t.Parallel()
	f := newField(t)
	client, server, a1, a2 := f.clientAndServer()
	stranger := f.outside("stranger")
	front, back := f.ztunnel("node-1", a1, nil), f.ztunnel("node-2", a2, nil)

	load, stop := context.WithCancel(t.Context())
	defer stop()
	var done sync.WaitGroup
	var good atomic.Int64
	for _, p := range []*pod{client, stranger} {
		done.Go(func() { pace(t, load, p, server.IP4, &good) })
	}
	replace := func(node string, a *agent, old *ztunnel) {
		open := client.dial(t, server.IP4, 7000)
		io.WriteString(open, "begin ")
		wantMore(old, &good)
		successor := f.ztunnel(node, a, old.ns)
		wantMore(successor, &good)
		old.term()
		wantMore(successor, &good)
		io.WriteString(open, "end")
		open.CloseWrite()
		got, err := io.ReadAll(open)
		if want := client.IP4.String() + "\nbegin end"; string(got) != want || err != nil {
			t.Errorf("a connection that was open during the drain of %s: %q, %v", node, got, err)
		}
		<-old.done
		wantMore(successor, &good)
	}
	replace("node-2", a2, back)
	replace("node-1", a1, front)
	stop()
	done.Wait()
}

// wantMore waits until the load has gone on for a while.
func wantMore(z *ztunnel, good *atomic.Int64) {
	z.t.Helper()
	reach := good.Load() + 40
	z.until("the load to go on", func() bool { return good.Load() >= reach })
}

// pace opens connections one after the other, some 100 a second, until ctx ends.
func pace(t *testing.T, ctx context.Context, p *pod, to netip.Addr, good *atomic.Int64) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		if err := tryExchange(p, to, 7000); err != nil {
			t.Errorf("%s: %v", p.name, err)
			return
		}
		good.Add(1)
		<-tick.C
	}
}

func tryExchange(p *pod, to netip.Addr, port uint16) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := p.NS.Dial(ctx, netip.AddrPortFrom(to, port), netns.DialOptions{})
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	io.WriteString(c, "hello")
	c.CloseWrite()
	got, err := io.ReadAll(c)
	if err == nil && !strings.HasSuffix(string(got), "\nhello") {
		err = fmt.Errorf("got back %q", got)
	}
	return err
}

// TestZtunnelLeave holds that taking a pod out of the mesh ends no connection.
func TestZtunnelLeave(t *testing.T) {
	t.Parallel()
	f := newField(t)
	client, server := f.pod("client", "node-1"), f.pod("server", "node-1")
	server.listen(t, 7000, echo)
	a := f.agent("node-1", client, server)
	z := f.ztunnel("node-1", a, nil)

	open := client.dial(t, server.IP4, 7000)
	io.WriteString(open, "begin ")
	z.until("the connection to be listed", func() bool {
		return strings.Contains(z.get("http://127.0.0.1:15000/config_dump"), `"originalDst"`)
	})
	for _, uid := range []mesh.PodUID{"uid-client", "uid-server"} {
		if err := a.server.Delete(t.Context(), uid); err != nil {
			t.Fatal(err)
		}
	}
	z.until("the pods to be let go", func() bool {
		return strings.Contains(z.get("http://127.0.0.1:15020/metrics"), "workload_manager_active_proxy_count 0")
	})
	io.WriteString(open, "end")
	open.CloseWrite()
	got, err := io.ReadAll(open)
	if want := client.IP4.String() + "\nbegin end"; string(got) != want || err != nil {
		t.Errorf("a connection of a pod that left: %q, %v", got, err)
	}
}

// TestZtunnelPolicyChange holds that a policy ends the open connections that it
// denies and no others, that a policy that is named but has not come denies in
// the end, and that the mesh goes on without its control plane.
func TestZtunnelPolicyChange(t *testing.T) {
	t.Parallel()
	f := newField(t)
	friend, foe, server := f.pod("friend", "node-1"), f.pod("foe", "node-1"), f.pod("server", "node-1")
	server.listen(t, 7000, echo)
	control := xdstest.New(t, nil)
	tell := func(p *pod, policies ...mesh.PolicyName) {
		control.Set(workload.TypeURL, "Kubernetes//Pod/default/"+p.name, strconv.Itoa(len(policies)), &workload.Address{
			Type: &workload.Address_Workload{Workload: workload.FromWorkload(&mesh.Workload{
				UID: mesh.UID("Kubernetes//Pod/default/" + p.name), Name: p.name, Namespace: "default", ServiceAccount: p.name,
				Addresses: []netip.Addr{p.IP4, p.IP6}, Protocol: mesh.HBONE, Node: p.node, Capacity: 1, Cluster: mesh.DefaultCluster,
				TrustDomain: mesh.DefaultTrustDomain, Policies: policies,
			})}})
	}
	for _, p := range []*pod{friend, foe, server} {
		tell(p)
	}
	name := mesh.PolicyName{Namespace: "default", Name: "no-foe"}
	deny := authz.FromMesh(&mesh.Policy{Name: name, Scope: mesh.ScopeWorkloadSelector, Action: mesh.Deny,
		Rules: []mesh.Rule{{Clauses: []mesh.Clause{{Matches: []mesh.Match{{
			ServiceAccounts: []mesh.ServiceAccountMatch{{Namespace: "default", ServiceAccount: "foe"}}}}}}}}})
	control.Set(authz.TypeURL, name.String(), "1", deny)

	ns := netnstest.New(t)
	forward(t, ns, netip.MustParseAddrPort("127.0.0.1:15010"), strings.TrimPrefix(control.URL(), "http://"))
	a := f.agent("node-1", friend, foe, server)
	z := f.ztunnel("node-1", a, ns, "LOCAL_XDS_PATH=", "XDS_ADDRESS=http://127.0.0.1:15010")

	kept, ended := friend.dial(t, server.IP4, 7000), foe.dial(t, server.IP4, 7000)
	for _, c := range []*net.TCPConn{kept, ended} {
		io.WriteString(c, "begin ")
		if _, err := io.ReadFull(c, make([]byte, len(friend.IP4.String()+"\nbegin "))); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	tell(server, name)
	if n, err := ended.Read(make([]byte, 1)); n != 0 || err == nil || isTimeout(err) {
		t.Errorf("the foe's connection: %d bytes, %v", n, err)
	}
	t.Logf("an open connection was ended %s after the policy was sent", time.Since(began))
	z.wantLog(`connection closed due to policy change.*default/no-foe`)
	foe.wantReset(t, server.IP4, 7000)
	z.wantLog(`explicitly denied by.*default/no-foe`)

	control.Stop()
	io.WriteString(kept, "end")
	kept.CloseWrite()
	if rest, err := io.ReadAll(kept); string(rest) != "end" || err != nil {
		t.Errorf("the friend's connection: %q, %v", rest, err)
	}
	friend.exchange(t, server.IP4, 7000)
}

// forward passes connections to addr in the namespace on to target outside it.
func forward(t *testing.T, ns *netns.NS, addr netip.AddrPort, target string) {
	l, err := ns.Listen(t.Context(), addr, netns.ListenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() {
		for {
			in, err := l.AcceptTCP()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", target)
			if err != nil {
				in.Close()
				continue
			}
			all.Go(func() {
				defer in.Close()
				defer out.Close()
				relay.Copy(ctx, in, out.(*net.TCPConn), nil)
			})
		}
	})
	t.Cleanup(func() { l.Close(); cancel(); all.Wait() })
}

// TestZtunnelKilled holds that everything works again once a ztunnel that was
// killed has a successor.
func TestZtunnelKilled(t *testing.T) {
	t.Parallel()
	f := newField(t)
	client, server, a1, a2 := f.clientAndServer()
	f.ztunnel("node-1", a1, nil)
	old := f.ztunnel("node-2", a2, nil)
	open := client.dial(t, server.IP4, 7000)
	io.WriteString(open, "hello")
	if _, err := io.ReadFull(open, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	old.cmd.Process.Kill()
	<-old.done
	old.err = nil
	if _, err := io.Copy(io.Discard, open); isTimeout(err) {
		t.Error("the client of a connection that was cut has not been told")
	}
	client.wantReset(t, server.IP4, 7000)
	f.ztunnel("node-2", a2, old.ns)
	client.exchange(t, server.IP4, 7000)
}

// TestZtunnelAdmin changes a log level and ends the process by its admin port; a
// connection that outlives the drain time is cut.
func TestZtunnelAdmin(t *testing.T) {
	t.Parallel()
	f := newField(t)
	client, stranger := f.pod("client", "node-1"), f.outside("stranger")
	stranger.listen(t, 7000, echo)
	z := f.ztunnel("node-1", f.agent("node-1", client), nil,
		"RUST_LOG=ztunnel=warn,ztunnel::access=off", "LOG_FORMAT=json", "CONNECTION_TERMINATION_DEADLINE=100ms")
	client.exchange(t, stranger.IP4, 7000)
	if z.logged(`connection complete`) {
		t.Error("RUST_LOG does not turn the access log off")
	}
	z.post("http://127.0.0.1:15000/logging?level=access=debug")
	client.exchange(t, stranger.IP4, 7000)
	z.wantLog(`"scope":"access".*"message":"connection opened"`)
	z.wantLog(`"message":"connection complete".*"direction":"outbound","bytes_sent":5`)
	open := client.dial(t, stranger.IP4, 7000)
	io.WriteString(open, "hello")
	if _, err := io.ReadFull(open, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	z.post("http://127.0.0.1:15000/quitquitquit")
	<-z.done
	if _, err := io.Copy(io.Discard, open); err == nil || isTimeout(err) {
		t.Errorf("the connection that was open at the end: %v, want a reset", err)
	}
	if z.err != nil {
		t.Errorf("the process ended with %v", z.err)
	}
}
