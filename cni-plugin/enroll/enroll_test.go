package enroll_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/cni-plugin/enroll"
	"github.com/culvert-mesh/culvert/cni-plugin/podsource"
	"github.com/culvert-mesh/culvert/pkg/folder"
	"github.com/culvert-mesh/culvert/pkg/golden"
)

// Each case is a file: the pod and its namespace as YAML, the wanted decision.
func TestDecide(t *testing.T) {
	t.Parallel()
	golden.Cases(t, "testdata/*.txtar", func(t *testing.T, c *golden.Case) {
		pod, ns := parse(t, c.Section(t, "objects.yaml"))
		c.Want(t, "want", render(enroll.Decide(enroll.DefaultConfig(), pod, ns)))
	})
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
