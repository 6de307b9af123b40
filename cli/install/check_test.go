package install

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/culvert-mesh/culvert/pkg/golden"
)

// now is when every case is.
var now = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

// Each case is what is different from the cluster in testdata/healthy.yaml: objects
// that are added or replaced, objects that are gone ("gone": KIND NAMESPACE/NAME), and
// in "facts" the rest. Wanted are the lines that are not ok.
func TestCheck(t *testing.T) {
	t.Parallel()
	golden.Cases(t, "testdata/check/*.txtar", func(t *testing.T, c *golden.Case) {
		objects := parseObjects(t, readFile(t, "testdata/healthy.yaml"))
		for key, o := range parseObjects(t, section(t, c, "objects.yaml")) {
			objects[key] = o
		}
		for line := range strings.Lines(string(section(t, c, "gone"))) {
			key := strings.TrimSpace(line)
			if _, ok := objects[key]; !ok {
				t.Fatalf("gone: there is no %q", key)
			}
			delete(objects, key)
		}
		f := factsOf(t, objects)
		decode(t, section(t, c, "facts"), f)
		for _, field := range strings.Fields(string(section(t, c, "unread"))) {
			f.Unread[field] = errors.New("forbidden")
		}
		c.Want(t, "want", notOK(Check(f, f.Installed.Status == "")))
	})
}

func notOK(results []Result) string {
	var b strings.Builder
	for _, r := range results {
		if r.Status != OK {
			fmt.Fprintf(&b, "%s %s: %s\n", r.Status, r.Check, r.Line())
			if r.Fix != "" {
				fmt.Fprintf(&b, "  → %s\n", r.Fix)
			}
		}
	}
	if b.Len() == 0 {
		return "all is well\n"
	}
	return b.String()
}

func section(t *testing.T, c *golden.Case, name string) []byte {
	t.Helper()
	for _, f := range c.Files() {
		if f.Name == name {
			return f.Data
		}
	}
	return nil
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// parseObjects returns objects by "KIND NAMESPACE/NAME". ROOT-A and ROOT-B stand for certificates.
func parseObjects(t *testing.T, content []byte) map[string]map[string]any {
	t.Helper()
	objects := map[string]map[string]any{}
	for _, doc := range documents(string(content)) {
		o := map[string]any{}
		if err := yaml.Unmarshal([]byte(doc), &o); err != nil {
			t.Fatal(err)
		}
		u := unstructured.Unstructured{Object: o}
		objects[fmt.Sprintf("%s %s/%s", u.GetKind(), u.GetNamespace(), u.GetName())] = o
	}
	return objects
}

func decode(t *testing.T, content []byte, into any) {
	t.Helper()
	for name, pem := range roots() {
		content = bytes.ReplaceAll(content, []byte(name), []byte(strconv.Quote(pem)))
	}
	if err := yaml.UnmarshalStrict(content, into); err != nil {
		t.Fatalf("%v in\n%s", err, content)
	}
}

// roots are two authorities, one of which ends within a month.
var roots = sync.OnceValue(func() map[string]string {
	out := map[string]string{}
	for name, ends := range map[string]time.Time{"ROOT-A": now.AddDate(5, 0, 0), "ROOT-B": now.AddDate(0, 0, 10)} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			panic(err)
		}
		template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: now.AddDate(-1, 0, 0), NotAfter: ends, IsCA: true, BasicConstraintsValid: true}
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			panic(err)
		}
		out[name] = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	return out
})

// factsOf sorts objects into facts, in the order of their names.
func factsOf(t *testing.T, objects map[string]map[string]any) *Facts {
	t.Helper()
	f := &Facts{Now: now, Namespace: DefaultNamespace, Roots: map[string]string{}, Agents: map[string]Agent{}, Unread: map[string]error{}}
	keys := make([]string, 0, len(objects))
	for k := range objects {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	lists := map[string]func(*testing.T, []byte){
		"Node": onto(&f.Nodes), "Namespace": onto(&f.Namespaces), "Pod": onto(&f.Pods), "Service": onto(&f.Services), "Event": onto(&f.Events),
		"DaemonSet": onto(&f.Daemons), "Deployment": onto(&f.Deployments), "NetworkPolicy": onto(&f.NetworkPolicies),
	}
	for _, key := range keys {
		text, err := yaml.Marshal(objects[key])
		if err != nil {
			t.Fatal(err)
		}
		u := &unstructured.Unstructured{Object: objects[key]}
		switch kind, _, _ := strings.Cut(key, " "); kind {
		case "Facts":
			delete(objects[key], "kind")
			delete(objects[key], "metadata")
			text, _ := yaml.Marshal(objects[key])
			decode(t, text, f)
		case "Lease":
			f.Lease = &coordinationv1.Lease{}
			decode(t, text, f.Lease)
		case "Gateway":
			f.Gateways = append(f.Gateways, gatewayOf(u))
		default:
			list := lists[kind]
			if list == nil {
				t.Fatalf("a %s is no fact", kind)
			}
			list(t, text)
		}
	}
	return f
}

// onto reads one more of a list.
func onto[T any](list *[]T) func(*testing.T, []byte) {
	return func(t *testing.T, text []byte) {
		t.Helper()
		var one T
		decode(t, text, &one)
		*list = append(*list, one)
	}
}

// Every check has facts that it needs, and says so when they are missing.
func TestUnread(t *testing.T) {
	t.Parallel()
	for _, c := range slices.Concat(before, after) {
		for _, field := range c.needs {
			f := &Facts{Unread: map[string]error{field: errors.New("forbidden")}}
			if r, unread := c.unread(f); !unread || r.Status != Unknown || r.Fix == "" {
				t.Errorf("%s without %s: %+v", c.name, field, r)
			}
		}
		if len(c.needs) == 0 {
			t.Errorf("%s needs nothing", c.name)
		}
	}
}

// Each case is a workload with its pods and events.
func TestJudge(t *testing.T) {
	t.Parallel()
	golden.Cases(t, "testdata/progress/*.txtar", func(t *testing.T, c *golden.Case) {
		var o Observed
		f := factsOf(t, parseObjects(t, section(t, c, "objects.yaml")))
		o.Pods, o.Events = f.Pods, f.Events
		for _, d := range f.Daemons {
			o.Workload = Workload{"DaemonSet", d.Namespace, d.Name}
			o.fromDaemonSet(&d)
			o.Newest = d.Labels["newest"]
		}
		for _, d := range f.Deployments {
			o.Workload = Workload{"Deployment", d.Namespace, d.Name}
			o.fromDeployment(&d)
		}
		p := Judge(o)
		got := fmt.Sprintf("ready: %v\n%s\n", p.Ready, p.Text)
		for _, r := range p.Reasons {
			got += "  " + r + "\n"
		}
		if !p.Ready {
			got += "fix: " + remedy(p.Reasons) + "\n"
		}
		c.Want(t, "want", got)
	})
}
