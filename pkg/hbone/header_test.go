package hbone

import (
	"net/netip"
	"strings"
	"testing"
	"testing/quick"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

func TestFormatBaggage(t *testing.T) {
	t.Parallel()
	w := &mesh.Workload{
		Cluster: "Kubernetes", Namespace: "shop", WorkloadName: "cart", WorkloadType: mesh.Deployment,
		CanonicalName: "cart", CanonicalRevision: "v2", Locality: mesh.Locality{Region: "r1", Zone: "z1"},
	}
	const want = "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=cart," +
		"service.name=cart,service.version=v2,cloud.region=r1,cloud.availability_zone=z1"
	if got := FormatBaggage(w); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	w = &mesh.Workload{Namespace: "shop", WorkloadType: mesh.CronJob, WorkloadName: "nightly"}
	if got, want := FormatBaggage(w), "k8s.namespace.name=shop,k8s.cronjob.name=nightly"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestParseBaggageIsLenient(t *testing.T) {
	t.Parallel()
	got := ParseBaggage(" service.name = cart ;p=1, unknown=x, no value ,,k8s.pod.name=p-0,cloud.region=a,cloud.region=b")
	if want := (Baggage{Service: "cart", WorkloadType: "pod", WorkloadName: "p-0", Region: "b"}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// What was formatted is parsed as the same.
func TestBaggageRoundTrip(t *testing.T) {
	t.Parallel()
	same := func(cluster, ns, name, service, revision, region, zone string, kind uint8) bool {
		w := &mesh.Workload{
			Cluster: mesh.Cluster(token(cluster)), Namespace: token(ns), WorkloadName: token(name),
			WorkloadType: mesh.WorkloadType(kind % 4), CanonicalName: token(service), CanonicalRevision: token(revision),
			Locality: mesh.Locality{Region: token(region), Zone: token(zone)},
		}
		s := FormatBaggage(w)
		b := ParseBaggage(s)
		return b.String() == s && b.Namespace == w.Namespace && b.WorkloadName == w.WorkloadName && b.Zone == w.Locality.Zone &&
			(b.WorkloadName == "" || b.WorkloadType == w.WorkloadType.String())
	}
	if err := quick.Check(same, nil); err != nil {
		t.Error(err)
	}
}

// token keeps what may be in a Kubernetes name or a label's value.
func token(s string) string {
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._", r) {
			return r
		}
		return 'a' + r%26
	}, s)
}

func TestForwarded(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		client, host, want string
	}{
		{"10.0.0.1:4000", "", `for="10.0.0.1:4000"`},
		{"10.0.0.1:4000", "cart.shop.svc.cluster.local", `for="10.0.0.1:4000";host=cart.shop.svc.cluster.local`},
		{"[fd00::1]:4000", "cart", `for="[fd00::1]:4000";host=cart`},
	} {
		client := netip.MustParseAddrPort(tc.client)
		got := FormatForwarded(client, tc.host)
		if got != tc.want {
			t.Errorf("got %s, want %s", got, tc.want)
		}
		if f := ParseForwarded(got); f.For != client || f.Host != tc.host {
			t.Errorf("%s parsed as %+v", got, f)
		}
	}
	for s, want := range map[string]Forwarded{
		"":                         {},
		"for=10.0.0.1":             {For: netip.MustParseAddrPort("10.0.0.1:0")},
		`For="[::1]";by=x`:         {For: netip.MustParseAddrPort("[::1]:0")},
		`host="a;b,c\"d"; proto=x`: {Host: `a;b,c"d`},
		`for=_hidden;host=a, for="10.0.0.1:1";host=b`: {Host: "a"},
		`for=";;`:  {},
		`;;host=a`: {Host: "a"},
	} {
		if got := ParseForwarded(s); got != want {
			t.Errorf("%q parsed as %+v, want %+v", s, got, want)
		}
	}
}

func TestTraceparent(t *testing.T) {
	t.Parallel()
	a, b := NewTraceparent(), NewTraceparent()
	if a == b || len(a) != 55 || a[:3] != "00-" || a[35] != '-' || a[52:] != "-00" {
		t.Errorf("%q, %q", a, b)
	}
}

func TestAuthority(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]Authority{
		"10.0.0.1:80":          {Addr: netip.MustParseAddr("10.0.0.1"), Port: 80},
		"[fd00::1]:80":         {Addr: netip.MustParseAddr("fd00::1"), Port: 80},
		"cart.shop.svc:8080":   {Host: "cart.shop.svc", Port: 8080},
		"[::ffff:10.0.0.1]:80": {Addr: netip.MustParseAddr("10.0.0.1"), Port: 80},
	} {
		got, err := ParseAuthority(s)
		if err != nil || got != want {
			t.Errorf("%q: %+v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", ":80", "cart", "cart:", "cart:x", "cart:65536", "fd00::1:80", "a b:80", "user@cart:80", "[cart]:80", "cart:-1"} {
		if got, err := ParseAuthority(s); err == nil {
			t.Errorf("%q parsed as %+v", s, got)
		}
	}
}

func TestStatusError(t *testing.T) {
	t.Parallel()
	err := error(&StatusError{Status: 401, Authority: "10.0.0.1:80"})
	if reason.Of(err) != reason.TunnelStatus || !strings.Contains(err.Error(), "http status: 401") {
		t.Errorf("%v", err)
	}
}

func TestBudget(t *testing.T) {
	t.Parallel()
	b := NewBudget(100)
	if !b.Take(60) || b.Take(60) || b.Exhausted() {
		t.Error("took more than there is, or less")
	}
	if b.Force(60) || !b.Exhausted() {
		t.Error("forced beyond the size and did not notice")
	}
	b.Give(120)
	if used, size := b.Used(); used != 0 || size != 100 {
		t.Errorf("used %d of %d", used, size)
	}
	var none *Budget
	if !none.Take(1<<40) || !none.Force(1<<40) || none.Exhausted() {
		t.Error("nil budget has a limit")
	}
}

func FuzzBaggage(f *testing.F) {
	f.Add("k8s.cluster.name=a,k8s.pod.name=b,service.name=c;x=y")
	f.Fuzz(func(t *testing.T, s string) {
		b := ParseBaggage(s)
		if again := ParseBaggage(b.String()); b.WorkloadName != "" && again != b {
			t.Errorf("%q: %+v, then %+v", s, b, again)
		}
	})
}

func FuzzForwarded(f *testing.F) {
	f.Add(`for="10.0.0.1:1";host=a`)
	f.Add(`for="[::1]:1"; host="a\"b", x`)
	f.Fuzz(func(t *testing.T, s string) {
		got := ParseForwarded(s)
		if !got.For.IsValid() || strings.ContainsAny(got.Host, "\"\\;, \t=") || got.Host == "" {
			return
		}
		if again := ParseForwarded(FormatForwarded(got.For, got.Host)); again != got {
			t.Errorf("%q: %+v, then %+v", s, got, again)
		}
	})
}

func FuzzAuthority(f *testing.F) {
	f.Add("10.0.0.1:80")
	f.Add("cart.shop.svc:80")
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ParseAuthority(s)
		if err != nil {
			return
		}
		if again, err := ParseAuthority(a.String()); err != nil || again != a {
			t.Errorf("%q: %+v, then %+v, %v", s, a, again, err)
		}
	})
}
