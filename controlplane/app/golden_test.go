package app

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/culvert-mesh/culvert/controlplane/compile"
	"github.com/culvert-mesh/culvert/controlplane/model"
	"github.com/culvert-mesh/culvert/controlplane/source/file"
	"github.com/culvert-mesh/culvert/controlplane/xds"
	"github.com/culvert-mesh/culvert/controlplane/xds/waypoint"
	"github.com/culvert-mesh/culvert/controlplane/xds/workload"
	"github.com/culvert-mesh/culvert/pkg/folder"
	"github.com/culvert-mesh/culvert/pkg/golden"
)

// TestGolden reads each archive's YAML files and compares the resources and the
// findings with the archive's "want" files. A want/resources file lists what the
// resources whose name contains the words in its name's place hold.
func TestGolden(t *testing.T) {
	t.Parallel()
	golden.Cases(t, "testdata/*.txtar", func(t *testing.T, c *golden.Case) {
		dir := t.TempDir()
		for _, f := range c.Files() {
			if !strings.HasPrefix(f.Name, "want/") {
				if err := os.WriteFile(filepath.Join(dir, f.Name), f.Data, 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
		resources, findings := results(t, dir)
		for name, got := range map[string]string{"want/resources": resources, "want/findings": findings} {
			if c.Has(name) {
				c.Want(t, name, got)
			}
		}
	})
}

// results compiles a folder.
func results(t *testing.T, dir string) (resources, findings string) {
	u := file.Decode(folder.Load(folder.Layers{Base: []string{dir}}))
	m := model.New(compile.Mesh{NetworkPolicies: true})
	var list []xds.Resource
	for _, c := range m.Apply(u) {
		list = append(list, workload.Resources(c.Output)...)
		list = append(list, waypoint.Resources(c.Output)...)
	}
	slices.SortFunc(list, func(a, b xds.Resource) int {
		return strings.Compare(a.Type+" "+a.Name.Name+" "+a.Scope, b.Type+" "+b.Name.Name+" "+b.Scope)
	})
	var r, f strings.Builder
	for _, res := range list {
		if strings.HasSuffix(res.Name.Name, "/istio_converted_static_strict") {
			continue
		}
		_, kind, _ := strings.Cut(res.Type, "/")
		fmt.Fprintf(&r, "%s %s", kind[strings.LastIndexByte(kind, '.')+1:], res.Name.Name)
		if res.Scope != "" {
			fmt.Fprintf(&r, " for %s", res.Scope)
		}
		r.WriteString("\n" + body(t, res) + "\n")
	}
	for _, p := range u.Problems {
		fmt.Fprintf(&f, "%s:%d: %s %s: %s: %s\n", filepath.Base(p.File), p.Line, p.Object, p.Field, p.Reason, p.Detail)
	}
	for _, c := range m.Conditions() {
		if c.Status {
			fmt.Fprintf(&f, "%s %s\n", c.Object, c.Type)
			continue
		}
		fmt.Fprintf(&f, "%s not %s: %s:%d %s: %s: %s\n", c.Object, c.Type, filepath.Base(c.File), c.Line, c.Field, c.Reason, c.Message)
	}
	return r.String(), strings.ReplaceAll(f.String(), dir+"/", "")
}

func body(t *testing.T, r xds.Resource) string {
	decoded, err := r.Decode()
	if err != nil {
		t.Fatal(err)
	}
	m, err := decoded.GetResource().UnmarshalNew()
	if err != nil {
		t.Fatal(err)
	}
	text, err := protojson.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := json.Compact(&out, text); err != nil { // protojson varies its spaces on purpose
		t.Fatal(err)
	}
	var wrapped bytes.Buffer
	if err := json.Indent(&wrapped, out.Bytes(), "  ", " "); err != nil {
		t.Fatal(err)
	}
	if out.Len() < 160 {
		return "  " + out.String()
	}
	return "  " + wrapped.String()
}
