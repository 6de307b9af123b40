package gateway

import (
	"flag"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	"sigs.k8s.io/yaml"

	"github.com/culvert-mesh/culvert/pkg/reason"
)

var update = flag.Bool("update", false, "rewrite the wanted results in testdata")

// TestRender compares what a waypoint Gateway renders into with the golden YAML.
func TestRender(t *testing.T) {
	t.Parallel()
	objects, err := Render(Gateway{
		Namespace: "shop", Name: "waypoint", UID: "u1", Class: ClassIstioWaypoint,
		Labels: map[string]string{"team": "blue"}, Listeners: []Listener{{Name: "mesh", Port: 15008, Protocol: "HBONE"}},
	}, Options{Network: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	got := &txtar.Archive{}
	for _, o := range []struct {
		name   string
		object any
	}{{"serviceaccount.yaml", objects.ServiceAccount}, {"deployment.yaml", objects.Deployment}, {"service.yaml", objects.Service}} {
		text, err := yaml.Marshal(o.object)
		if err != nil {
			t.Fatal(err)
		}
		got.Files = append(got.Files, txtar.File{Name: o.name, Data: text})
	}
	const golden = "testdata/waypoint.txtar"
	if *update {
		if err := os.WriteFile(golden, txtar.Format(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(txtar.Format(got))); diff != "" {
		t.Errorf("-want +got (-update rewrites):\n%s", diff)
	}
}

func TestRenderErrors(t *testing.T) {
	t.Parallel()
	if _, err := Render(Gateway{Namespace: "shop", Name: "g", Class: "istio"}, Options{}); reason.Of(err) != reason.Unsupported {
		t.Errorf("class istio: %v", err)
	}
	if _, err := Render(Gateway{Namespace: "shop", Name: "g", Class: ClassCulvertWaypoint}, Options{}); reason.Of(err) != reason.MissingField {
		t.Errorf("no listeners: %v", err)
	}
}
