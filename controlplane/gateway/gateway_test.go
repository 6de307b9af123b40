package gateway

import (
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
	"sigs.k8s.io/yaml"

	"github.com/culvert-mesh/culvert/pkg/golden"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

// TestRender compares what a waypoint Gateway renders into with the golden YAML.
func TestRender(t *testing.T) {
	t.Parallel()
	objects, err := Render(Gateway{
		Namespace: "shop", Name: "waypoint", UID: "u1", Class: ClassIstioWaypoint,
		Labels: map[string]string{"team": "blue"}, Listeners: []Listener{{Name: "mesh", Port: 15008, Protocol: "HBONE"}},
	}, Options{Network: "n1", LogFormat: "json", MinDrain: "5s"})
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
	golden.File(t, "testdata/waypoint.txtar", string(txtar.Format(got)))
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
