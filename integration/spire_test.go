//go:build spire

package integration

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/pkg/certs"
	"github.com/culvert-mesh/culvert/pkg/certs/spire"
	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// spireMesh is three nodes: two of trust domain cluster.local, and one of
// other.local, each with a SPIRE agent and a ztunnel.
//
//	node-1: client, short          SPIRE server of cluster.local
//	node-2: server, vault          ▲ bundles exchanged ▼
//	node-3: guest, stranger        SPIRE server of other.local
type spireMesh struct {
	*field
	local, other                           *spireServer
	s1, s2, s3                             *spireAgent
	client, short, server, vault           *pod
	guest, stranger                        *pod
	z1, z2, z3                             *ztunnel
	clientID, serverID, shortID, guestID   string
	shortEntry                             string
	clientEntry, guestEntry, strangerEntry string
}

// life is that of most certificates: SPIRE renews at half of it.
const life = 20 * time.Second

func newSpireMesh(t *testing.T) *spireMesh {
	t.Helper()
	m := &spireMesh{field: newField(t), local: newSpireServer(t, "cluster.local"), other: newSpireServer(t, "other.local")}
	m.program = program(t, "CULVERT_BIN", "ztunnel")
	m.local.trust(m.other)
	m.other.trust(m.local)
	m.s1, m.s2, m.s3 = m.local.agent("node-1"), m.local.agent("node-2"), m.other.agent("node-3")

	m.client, m.short = m.pod("client", "node-1"), m.pod("short", "node-1")
	m.server = m.pod("server", "node-2")
	m.vault = m.pod("vault", "node-2", `authorizationPolicies: ["default/only-guest"]`)
	m.guest, m.stranger = m.pod("guest", "node-3"), m.pod("stranger", "node-3")
	for i, w := range m.workloads {
		if strings.Contains(w, "node: node-3") {
			m.workloads[i] = strings.Replace(w, "trustDomain: cluster.local", "trustDomain: other.local", 1)
		}
	}
	m.policy(`- name: only-guest
  namespace: default
  scope: WorkloadSelector
  action: Allow
  rules:
  - - - principals: [!Exact other.local/ns/default/sa/guest]
`)
	federated := []string{"-federatesWith", m.other.id("")}
	m.clientEntry = m.local.workload("node-1", "client", life)
	m.shortEntry = m.local.workload("node-1", "short", life)
	m.local.workload("node-2", "server", life)
	m.local.workload("node-2", "vault", life, federated...)
	m.guestEntry = m.other.workload("node-3", "guest", life, "-federatesWith", m.local.id(""))
	m.strangerEntry = m.other.workload("node-3", "stranger", life)
	m.clientID, m.shortID = m.local.id("/ns/default/sa/client"), m.local.id("/ns/default/sa/short")
	m.serverID, m.guestID = m.local.id("/ns/default/sa/server"), m.other.id("/ns/default/sa/guest")

	m.server.listen(t, 7000, echo)
	m.vault.listen(t, 7000, echo)
	m.z1 = m.ztunnel("node-1", m.field.agent("node-1", m.client, m.short), nil, m.s1.environ("cluster.local")...)
	m.z2 = m.ztunnel("node-2", m.field.agent("node-2", m.server, m.vault), nil, m.s2.environ("cluster.local")...)
	m.z3 = m.ztunnel("node-3", m.field.agent("node-3", m.guest, m.stranger), nil, m.s3.environ("other.local")...)
	for id, z := range map[string]*ztunnel{
		m.clientID: m.z1, m.shortID: m.z1, m.serverID: m.z2, m.local.id("/ns/default/sa/vault"): m.z2,
		m.guestID: m.z3, m.other.id("/ns/default/sa/stranger"): m.z3,
	} {
		z.serial(id) // an agent takes a moment to learn of its entries
	}
	return m
}

func TestSPIRE(t *testing.T) {
	m := newSpireMesh(t)
	t.Run("traffic", m.traffic)
	t.Run("own identity", m.ownIdentity)
	t.Run("federation", m.federation)
	t.Run("rotation", m.rotation)
	t.Run("agent restarts", m.agentRestarts)
	t.Run("bundle rotation", m.bundleRotation)
	t.Run("entry deleted", m.entryDeleted)
}

func (m *spireMesh) traffic(t *testing.T) {
	m.client.exchange(t, m.server.IP4, 7000)
	m.client.exchange(t, m.server.IP6, 7000)
	m.z2.wantLog(`src.identity="?` + m.clientID + `"? .*dst.identity="?` + m.serverID + `"?.*direction="?inbound`)
	for _, z := range []*ztunnel{m.z1, m.z2} {
		if z.logged("FAKE CERTIFICATE AUTHORITY") {
			t.Error("the certificates are not SPIRE's")
		}
	}
}

// ownIdentity asks for the certificate of ztunnel itself as a ztunnel does, by the
// Workload API; this process is as much of user 0 as a ztunnel.
func (m *spireMesh) ownIdentity(t *testing.T) {
	own := mesh.Identity{TrustDomain: "cluster.local", Namespace: "istio-system", ServiceAccount: "ztunnel"}
	issuer, err := spire.New(spire.Config{AdminSocket: m.s1.admin, WorkloadSocket: "unix://" + m.s1.workload, Own: own})
	if err != nil {
		t.Fatal(err)
	}
	defer issuer.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	issuer.Deliver(func(*certs.SVID) {})
	svid, err := issuer.Issue(ctx, own)
	if err != nil {
		t.Fatal(err)
	}
	if svid.ID != own || len(svid.RootCerts) == 0 {
		t.Errorf("got %s with %d roots", svid.ID, len(svid.RootCerts))
	}
}

// federation: a policy names a principal of another trust domain, whose bundle
// vouches for it; an entry that does not federate gets nowhere.
func (m *spireMesh) federation(t *testing.T) {
	m.guest.exchange(t, m.vault.IP4, 7000)
	m.z2.wantLog(`src.identity="?` + m.guestID + `"? .*direction="?inbound`)

	m.client.wantReset(t, m.vault.IP4, 7000)
	m.z2.wantLog(`src.identity="?` + m.clientID + `"?.*allow policies exist, but none allowed`)

	m.stranger.wantReset(t, m.vault.IP4, 7000) // its entry does not federate: it trusts no vault
	m.z3.wantLog(`spiffe://other.local/ns/default/sa/stranger does not federate with trust domain cluster.local`)
	m.guest.wantReset(t, m.server.IP4, 7000) // the server's entry does not federate: it trusts no guest
	m.z2.wantLog(`verify client ` + m.guestID + `: peer trust domain not accepted`)
}

// rotation: while a stream is open both ends' certificates are renewed, twice.
func (m *spireMesh) rotation(t *testing.T) {
	open := m.hold(t, m.client)
	client, server := []string{m.z1.serial(m.clientID)}, []string{m.z2.serial(m.serverID)}
	for range 2 {
		client = append(client, m.z1.serial(m.clientID, client...))
		server = append(server, m.z2.serial(m.serverID, server...))
		open.works()
		m.client.exchange(t, m.server.IP4, 7000)
	}
}

// stream is a connection that stays open.
type stream struct {
	t testing.TB
	c *net.TCPConn
	n int
}

func (m *spireMesh) hold(t *testing.T, from *pod) *stream {
	s := &stream{t: t, c: from.dial(t, m.server.IP4, 7000)}
	line := make([]byte, len(from.IP4.String())+1) // echo's first line
	if _, err := io.ReadFull(s.c, line); err != nil {
		t.Fatal(err)
	}
	s.works()
	return s
}

// works sends something and waits for its echo.
func (s *stream) works() {
	s.t.Helper()
	s.n++
	want := fmt.Sprintf("still here %d\n", s.n)
	got := make([]byte, len(want))
	s.c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(s.c, want); err != nil {
		s.t.Fatal(err)
	}
	if _, err := io.ReadFull(s.c, got); err != nil || string(got) != want {
		s.t.Fatalf("an open stream: %q, %v", got, err)
	}
}

// agentRestarts: without its agent a node goes on with what it has, and with the
// agent back certificates are renewed again.
func (m *spireMesh) agentRestarts(t *testing.T) {
	open := m.hold(t, m.client)
	m.s1.daemon.kill()
	m.client.exchange(t, m.server.IP4, 7000)
	open.works()
	old := m.z1.serial(m.clientID)
	m.s1.start()
	m.z1.serial(m.clientID, old)
	m.client.exchange(t, m.server.IP4, 7000)
	open.works()
}

// bundleRotation: the authority of the trust domain is replaced under traffic.
func (m *spireMesh) bundleRotation(t *testing.T) {
	open := m.hold(t, m.client)
	m.local.do("localauthority", "x509", "prepare")
	for _, z := range []struct {
		*ztunnel
		id string
	}{{m.z1, m.clientID}, {m.z2, m.serverID}} {
		eventually(t, "both authorities in the bundle of "+z.id, func() bool {
			c, err := z.certificate(z.id)
			return err == nil && len(c.RootCerts) == 2
		})
	}
	client, server := m.z1.serial(m.clientID), m.z2.serial(m.serverID)
	m.local.do("localauthority", "x509", "activate", "-authorityID", m.prepared(t))
	m.z1.serial(m.clientID, client) // one end has a certificate of the new authority, the other may not
	m.client.exchange(t, m.server.IP4, 7000)
	m.z2.serial(m.serverID, server)
	m.client.exchange(t, m.server.IP4, 7000)
	open.works()
}

// prepared returns the name of the authority that was prepared.
func (m *spireMesh) prepared(t *testing.T) string {
	t.Helper()
	text := m.local.do("localauthority", "x509", "show", "-output", "json")
	_, rest, ok := strings.Cut(text, `"prepared":{"authority_id":"`)
	id, _, found := strings.Cut(rest, `"`)
	if !ok || !found {
		t.Fatalf("no prepared authority in %s", text)
	}
	return id
}

// entryDeleted: the certificate serves until it ends, and then the log says why
// there is none.
func (m *spireMesh) entryDeleted(t *testing.T) {
	open := m.hold(t, m.short)
	m.local.do("entry", "delete", "-entryID", m.shortEntry)
	eventually(t, "the certificate's end", func() bool {
		c, err := m.z1.certificate(m.shortID)
		return err == nil && strings.HasPrefix(c.State, "Unavailable")
	})
	open.works()
	m.short.wantReset(t, m.server.IP4, 7000) // the tunnel that is open takes no more
	m.z1.wantLog(`no certificate for identity.*SPIRE has no entry for it on this node`)
	m.shortEntry = m.local.workload("node-1", "short", life)
	m.z1.serial(m.shortID)
	m.short.exchange(t, m.server.IP4, 7000)
}
