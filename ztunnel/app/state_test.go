package app

import (
	"context"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/pkg/handover"
	"github.com/culvert-mesh/culvert/pkg/hbone/hbonetest"
	"github.com/culvert-mesh/culvert/pkg/logging"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/run/runtest"
	wireauthz "github.com/culvert-mesh/culvert/pkg/wire/authz"
	"github.com/culvert-mesh/culvert/pkg/wire/workload"
	"github.com/culvert-mesh/culvert/pkg/workloads"
	"github.com/culvert-mesh/culvert/pkg/xds/xdstest"
)

// start runs a ztunnel without pods until the returned function is called.
func startApp(t *testing.T, environ ...string) (a *App, log *runtest.Buffer, stop func()) {
	t.Helper()
	cfg := parse(t, append([]string{"FAKE_CA=true", "INPOD_UDS=", "NODE_NAME=n", "ISTIO_META_DNS_CAPTURE=false"}, environ...)...)
	cfg.AdminPort, cfg.StatsPort, cfg.ReadyPort = freePort(t), freePort(t), freePort(t)
	log = &runtest.Buffer{}
	ctx, cancel := context.WithCancel(t.Context())
	ended, made := make(chan error, 1), make(chan *App, 1)
	go func() {
		ended <- logging.During(log, 0, func(w *logging.Writer) error {
			a, err := New(cfg, w)
			if err != nil {
				return err
			}
			made <- a
			return a.Run(ctx)
		})
	}()
	select {
	case a = <-made:
	case err := <-ended:
		t.Fatal(err)
	}
	stop = func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	return a, log, stop
}

// runStore runs a store for the time of the test, and returns its socket's path.
func runStore(t *testing.T) string {
	store := handover.NewStore(handover.StoreConfig{})
	path := filepath.Join(t.TempDir(), "store")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- store.Run(ctx, path) }()
	t.Cleanup(func() { cancel(); <-done })
	return path
}

// TestKnowledgeIsHandedOver: a ztunnel that starts while the control plane is away
// knows what its predecessor knew, says how old that is, and asks for no more than
// the differences when the control plane is back.
func TestKnowledgeIsHandedOver(t *testing.T) {
	path := runStore(t)

	server := xdstest.New(t, nil)
	w := &mesh.Workload{UID: "Kubernetes//Pod/ns/w", Name: "w", Namespace: "ns", ServiceAccount: "sa", TrustDomain: "cluster.local",
		Node: "n", Protocol: mesh.HBONE, Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}
	server.Set(workload.TypeURL, string(w.UID), "7", &workload.Address{Type: &workload.Address_Workload{Workload: workload.FromWorkload(w)}})
	s := &mesh.Service{Name: "s", Namespace: "ns", Hostname: "s.ns.svc", VIPs: []mesh.NetAddr{{Addr: netip.MustParseAddr("10.1.0.1")}}}
	server.Set(workload.TypeURL, s.Key().String(), "8", &workload.Address{Type: &workload.Address_Service{Service: workload.FromService(s)}})
	p := &mesh.Policy{Name: mesh.PolicyName{Namespace: "ns", Name: "p"}, Scope: mesh.ScopeNamespace, Action: mesh.Deny}
	server.Set(wireauthz.TypeURL, p.Name.String(), "", wireauthz.FromMesh(p))

	environ := []string{"XDS_ADDRESS=" + server.URL(), "HANDOVER_UDS=" + path}
	first, _, stop := startApp(t, environ...)
	id := w.Identity()
	hbonetest.Until(t, "the mesh to be known, and a certificate", func() bool {
		return isClosed(first.known) && first.certs.Held(id)
	})
	saved := func(name string) bool {
		for _, c := range first.stores {
			if p, err := c.Load(name); err == nil && p != nil {
				return true
			}
		}
		return false
	}
	for _, name := range []string{sectionAddresses, sectionPolicies, sectionCertificates} {
		hbonetest.Until(t, name+" to be saved", func() bool { return saved(name) })
	}
	stop()
	server.Stop()

	second, log, stop := startApp(t, environ...)
	hbonetest.Until(t, "the second to be ready", func() bool {
		return strings.Contains(get(second.cfg.ReadyPort, "/healthz/ready"), "the control plane is away: what is known is")
	})
	if second.store.Workload(w.UID) == nil || second.store.Service(s.Key()) == nil || second.store.Policy(p.Name) == nil || !second.certs.Held(id) {
		t.Errorf("not everything was taken over:\n%s", log)
	}
	st := second.Status()
	if !st.Restored || !st.Away || st.Contact.IsZero() || time.Since(st.Contact) > time.Hour {
		t.Errorf("status %+v", st)
	}
	want := map[string]string{string(w.UID): "7", s.Key().String(): "8"}
	if got := second.xds.Held(workload.TypeURL); !maps.Equal(got, want) {
		t.Errorf("holds %v, want %v", got, want)
	}
	server.Start()
	hbonetest.Until(t, "the second to hear of the control plane", func() bool { return !second.Status().Restored })
	if get(second.cfg.ReadyPort, "/healthz/ready") != "ready\n" {
		t.Error("the readiness port still says that the control plane is away")
	}
	stop()
	server.Stop()
	for _, other := range []string{"TRUST_DOMAIN=other.local", "CLUSTER_ID=other", "NODE_NAME=other"} {
		third, log, stop := startApp(t, append(slices.Clone(environ), other)...)
		hbonetest.Until(t, "a look at what is left", func() bool { return third.stores.Attached() })
		stop()
		if third.restored.Load() != nil || third.certs.Held(id) || third.store.Policy(p.Name) != nil {
			t.Errorf("%s goes on with what somebody else knew:\n%s", other, log)
		}
	}
}

// TestOrigin: each of the names that make a node of a mesh what it is counts.
func TestOrigin(t *testing.T) {
	t.Parallel()
	environ := []string{"FAKE_CA=true", "INPOD_UDS=", "NODE_NAME=n"}
	own := parse(t, environ...).origin()
	if own != parse(t, environ...).origin() {
		t.Error("of another origin than itself")
	}
	for _, other := range []string{"NODE_NAME=other", "TRUST_DOMAIN=other", "CLUSTER_ID=other", "NETWORK=other"} {
		if parse(t, append(slices.Clone(environ), other)...).origin() == own {
			t.Errorf("%s does not count", other)
		}
	}
}

// TestDamagedKnowledge: what cannot be trusted is not half believed.
func TestDamagedKnowledge(t *testing.T) {
	path := runStore(t)
	c := handover.NewClient(handover.ClientConfig{Path: path})
	hbonetest.Until(t, "the store", func() bool { return c.Attach() == nil })
	closing := make(chan struct{})
	clientCtx, end := context.WithCancel(t.Context())
	go func() { defer close(closing); c.Run(clientCtx) }()
	defer func() { end(); <-closing }()
	for name, content := range map[string]string{sectionPolicies: "garbage", sectionAddresses: "garbage", sectionCertificates: "garbage"} {
		f, err := handover.Seal(name, func(w io.Writer) error { _, err := io.WriteString(w, content); return err })
		if err != nil {
			t.Fatal(err)
		}
		c.Save(name, f)
		f.Close()
	}
	a, log, stop := startApp(t, "XDS_ADDRESS=http://127.0.0.1:1", "HANDOVER_UDS="+path)
	hbonetest.Until(t, "a line about it", func() bool { return strings.Contains(log.String(), "knowledge of the predecessor not taken over") })
	if isClosed(a.known) || a.Status().Restored {
		t.Error("garbage counts as knowledge")
	}
	stop()
}

// BenchmarkState says what it costs to deposit and to take over the knowledge of a
// large mesh.
func BenchmarkState(b *testing.B) {
	for _, n := range []int{1_000, 200_000} {
		store, held := workloads.New(), map[string]string{}
		var u workloads.Update
		for i := range n {
			app := i / 10
			w := &mesh.Workload{
				UID: mesh.UID(fmt.Sprintf("Kubernetes//Pod/namespace-%d/app-%d-5d4f8c7b9-%05d", app%100, app, i)), Name: fmt.Sprintf("app-%d-5d4f8c7b9-%05d", app, i),
				Namespace: fmt.Sprint("namespace-", app%100), ServiceAccount: fmt.Sprint("app-", app), TrustDomain: "cluster.local", Cluster: "Kubernetes",
				WorkloadName: fmt.Sprint("app-", app), CanonicalName: fmt.Sprint("app-", app), CanonicalRevision: "latest", Node: fmt.Sprint("node-", i%2000),
				Protocol: mesh.HBONE, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})},
				Services: []mesh.Membership{{Service: mesh.ServiceName{Namespace: fmt.Sprint("namespace-", app%100), Hostname: fmt.Sprintf("app-%d.svc.cluster.local", app)}, Ports: []mesh.Port{{Service: 80, Target: 8080}}}},
			}
			u.Workloads = append(u.Workloads, w)
			held[string(w.UID)] = fmt.Sprintf("%016x", i*7919)
		}
		store.Apply(u)
		records := func(yield func(handover.Record) bool) {
			give := giver{held: held, yield: yield}
			for w := range store.Workloads() {
				m := &workload.Address{Type: &workload.Address_Workload{Workload: workload.FromWorkload(w)}}
				if !give.record(string(w.UID), m) {
					return
				}
			}
		}
		var saved strings.Builder
		if err := handover.Encode(&saved, handover.Header{}, records); err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprint("save/", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := handover.Encode(io.Discard, handover.Header{}, records); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(saved.Len())/1e6, "MB")
		})
		b.Run(fmt.Sprint("restore/", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				into := batch{store: workloads.New(), known: map[string]string{}}
				if _, err := handover.Decode([]byte(saved.String()), into.take); err != nil {
					b.Fatal(err)
				}
				into.flush()
			}
		})
	}
}

// TestStateIsSavedAgain: what a store refused once is offered again, for it may be
// the last change in a long time.
func TestStateIsSavedAgain(t *testing.T) {
	t.Parallel()
	store := handover.NewStore(handover.StoreConfig{})
	ours, theirs, err := handover.Pair()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := handover.Inherited(theirs)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); store.Serve(ctx, ours) }()
	defer func() { cancel(); <-done }()
	c := handover.NewClient(handover.ClientConfig{Conn: conn})
	if err := c.Attach(); err != nil {
		t.Fatal(err)
	}
	f, err := handover.Seal("x", func(w io.Writer) error { _, err := io.WriteString(w, "x"); return err })
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for i := 0; c.Save(fmt.Sprint("other", i), f) == nil; i++ { // until the store takes no more
	}
	records := func() iter.Seq[handover.Record] {
		return func(yield func(handover.Record) bool) { yield(handover.Record{Name: "p"}) }
	}
	known := false
	s := &saver{stores: handover.Stores{c}, heard: func() time.Time { return time.Time{} }, log: slog.New(slog.DiscardHandler), wake: make(chan struct{}, 1)}
	s.add(sectionPolicies, 0, func() bool { return known }, records)
	s.poke(sectionPolicies)
	now := time.Now()
	if next := s.saveDue(now); next != 0 {
		t.Error("nothing is known, and it is to be saved over what a predecessor left")
	}
	known = true
	if next := s.saveDue(now); next <= 0 {
		t.Fatal("nobody comes back for what was not saved")
	}
	if p, _ := c.Load(sectionPolicies); p != nil {
		t.Fatal("saved all the same")
	}
	store.Clear()
	for i := range 3 {
		s.saveDue(now.Add(time.Duration(i+1) * time.Minute))
	}
	if p, err := c.Load(sectionPolicies); err != nil || p == nil {
		t.Errorf("never saved: %v", err)
	}
	if next := s.saveDue(now.Add(time.Hour)); next != 0 {
		t.Errorf("saved, and again in %v", next)
	}
}
