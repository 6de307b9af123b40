package status

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/culvert-mesh/culvert/controlplane/compile"
	"github.com/culvert-mesh/culvert/controlplane/model"
	"github.com/culvert-mesh/culvert/controlplane/source"
	"github.com/culvert-mesh/culvert/controlplane/source/kube"
	"github.com/culvert-mesh/culvert/pkg/golden"
)

var noon = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

// TestDesired takes objects as the API server has them through compile to the patches
// of their status: a case's sections are objects, judged in order (an object that
// stands twice is a newer version of itself), and "want" is what would be written.
func TestDesired(t *testing.T) {
	golden.Cases(t, "testdata/*.txtar", func(t *testing.T, c *golden.Case) {
		m := model.New(compile.Mesh{RootNamespace: "culvert-system"})
		var seen []*Seen
		for _, f := range c.Files() {
			if f.Name == "want" {
				continue
			}
			for doc := range strings.SplitSeq(string(f.Data), "\n---\n") {
				s := apply(t, m, doc)
				seen = append(without(seen, s), s)
			}
		}
		var out bytes.Buffer
		for _, s := range seen {
			found, known := judged(m, keyOf(s))
			if !known {
				t.Fatalf("%s is not known", keyOf(s))
			}
			write(&out, s, Desired(source.Kind(s.Kind), s, found, noon))
			if again := Desired(source.Kind(s.Kind), patched(t, s, found), found, noon.Add(time.Hour)); again != nil {
				t.Errorf("%s: written once more: %s", keyOf(s), again)
			}
		}
		c.Want(t, "want", out.String())
	})
}

func judged(m *model.Model, key source.Key) (Found, bool) {
	conditions, known := m.ConditionsOf(key)
	return Found{conditions, m.AddressesOf(key)}, known
}

func keyOf(s *Seen) source.Key {
	return source.Key{Kind: source.Kind(s.Kind), Namespace: s.Namespace, Name: s.Name}
}

func without(seen []*Seen, s *Seen) []*Seen {
	var out []*Seen
	for _, old := range seen {
		if keyOf(old) != keyOf(s) {
			out = append(out, old)
		}
	}
	return out
}

// apply puts one document into the model.
func apply(t *testing.T, m *model.Model, doc string) *Seen {
	t.Helper()
	raw, err := yaml.YAMLToJSON([]byte(doc))
	if err != nil {
		t.Fatal(err)
	}
	s := &Seen{}
	if err := json.Unmarshal(raw, s); err != nil {
		t.Fatal(err)
	}
	group, _, grouped := strings.Cut(s.APIVersion, "/")
	if !grouped {
		group = ""
	}
	o, problem, known := kube.Decode(group, source.Kind(s.Kind), raw)
	if !known || problem != nil {
		t.Fatalf("%s: known %v, %v", keyOf(s), known, problem)
	}
	m.Apply(source.Update{Set: []source.Object{o}})
	return s
}

// patched is what an object is after what is desired was written.
func patched(t *testing.T, s *Seen, found Found) *Seen {
	t.Helper()
	out := *s
	patch := Desired(source.Kind(s.Kind), s, found, noon)
	if patch == nil {
		return &out
	}
	var p struct {
		Status struct {
			Conditions *[]json.RawMessage
			Parents    *[]json.RawMessage
			Addresses  []hostAddress
		}
	}
	if err := json.Unmarshal(patch, &p); err != nil {
		t.Fatal(err)
	}
	if p.Status.Conditions != nil {
		out.Status.Conditions = *p.Status.Conditions
	}
	if p.Status.Parents != nil {
		out.Status.Parents = *p.Status.Parents
	}
	if p.Status.Addresses != nil {
		out.Status.Addresses = p.Status.Addresses
	}
	return &out
}

func write(out *bytes.Buffer, s *Seen, patch []byte) {
	if patch == nil {
		return
	}
	text, err := yaml.JSONToYAML(patch)
	if err != nil {
		panic(err)
	}
	out.WriteString(keyOf(s).String() + "\n")
	for line := range strings.Lines(string(text)) {
		out.WriteString("  " + line)
	}
}
