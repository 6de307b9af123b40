package status

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/culvert-mesh/culvert/controlplane/source"
	"github.com/culvert-mesh/culvert/pkg/golden"
)

// TestForget: a case's sections are objects as the API server has them, "want" is
// what would be written.
func TestForget(t *testing.T) {
	golden.Cases(t, "testdata/forget/*.txtar", func(t *testing.T, c *golden.Case) {
		var out bytes.Buffer
		for _, f := range c.Files() {
			if f.Name == "want" {
				continue
			}
			for doc := range strings.SplitSeq(string(f.Data), "\n---\n") {
				raw, err := yaml.YAMLToJSON([]byte(doc))
				if err != nil {
					t.Fatal(err)
				}
				s := &Seen{}
				if err := json.Unmarshal(raw, s); err != nil {
					t.Fatal(err)
				}
				patch, err := Forget(source.Kind(s.Kind), raw)
				if err != nil {
					t.Fatal(err)
				}
				write(&out, s, patch)
			}
		}
		c.Want(t, "want", out.String())
	})
}
