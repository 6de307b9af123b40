package enroll_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/culvert-mesh/culvert/cni-plugin/enroll"
	"github.com/culvert-mesh/culvert/cni-plugin/podsource"
	"github.com/culvert-mesh/culvert/pkg/folder"
)

var update = flag.Bool("update", false, "rewrite the wanted decisions")

// Each case is a file: the pod and its namespace as YAML, the wanted decision.
func TestDecide(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, path := range files {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			t.Parallel()
			decideFile(t, path)
		})
	}
}

func decideFile(t *testing.T, path string) {
	ar, err := txtar.ParseFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var pod enroll.Pod
	var ns enroll.Namespace
	for i, f := range ar.Files {
		switch f.Name {
		case "objects.yaml":
			pod, ns = parse(t, f.Data)
		case "want":
			got := render(enroll.Decide(enroll.DefaultConfig(), pod, ns))
			if *update {
				ar.Files[i].Data = []byte(got)
			} else if got != string(f.Data) {
				t.Errorf("got\n%swant\n%s", got, f.Data)
			}
		}
	}
	if *update {
		if err := os.WriteFile(path, txtar.Format(ar), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func parse(t *testing.T, data []byte) (pod enroll.Pod, ns enroll.Namespace) {
	t.Helper()
	objects, problems := folder.Parse("objects.yaml", data)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	for _, o := range objects {
		var err error
		switch o.Kind {
		case "Pod":
			pod, err = podsource.DecodePod(o)
		case "Namespace":
			ns, err = podsource.DecodeNamespace(o)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return pod, ns
}

func render(d enroll.Decision) string {
	s := "out: "
	if d.InMesh {
		s = "in: "
	}
	s += string(d.Reason) + "\n"
	if d.Capture.BypassInbound {
		s += "inbound traffic is left alone\n"
	}
	if d.Capture.DNS {
		s += "DNS is captured\n"
	}
	if v := d.Capture.VirtualInterfaces; len(v) > 0 {
		s += fmt.Sprintf("virtual interfaces: %s\n", strings.Join(v, " "))
	}
	return s
}
