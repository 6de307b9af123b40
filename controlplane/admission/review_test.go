package admission

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/culvert-mesh/culvert/controlplane/compile"
	"github.com/culvert-mesh/culvert/controlplane/model"
	"github.com/culvert-mesh/culvert/controlplane/source"
	"github.com/culvert-mesh/culvert/controlplane/source/kube"
	"github.com/culvert-mesh/culvert/pkg/golden"
)

// TestReview answers reviews: the section "mesh" is what there is, each other
// section is one request. An update has the object before, a line "becomes", and
// the object after.
func TestReview(t *testing.T) {
	golden.Cases(t, "testdata/*.txtar", func(t *testing.T, c *golden.Case) {
		m := model.New(compile.Mesh{RootNamespace: "culvert-system"})
		if c.Has("mesh") {
			for doc := range strings.SplitSeq(string(c.Section(t, "mesh")), "\n---\n") {
				m.Apply(source.Update{Set: []source.Object{object(t, doc)}})
			}
		}
		var out bytes.Buffer
		for _, f := range c.Files() {
			if f.Name == "mesh" || f.Name == "want" {
				continue
			}
			answer := Review(m.Judge, request(t, string(f.Data)))
			if answer.UID != "u" {
				t.Errorf("%s: the answer is to %q", f.Name, answer.UID)
			}
			fmt.Fprintf(&out, "%s: %s\n", f.Name, map[bool]string{true: "allowed", false: "refused"}[answer.Allowed])
			if answer.Result != nil {
				fmt.Fprintf(&out, "  %d %s: %s\n", answer.Result.Code, answer.Result.Reason, answer.Result.Message)
			}
			for _, w := range answer.Warnings {
				fmt.Fprintf(&out, "  warning: %s\n", w)
			}
		}
		c.Want(t, "want", out.String())
	})
}

func object(t *testing.T, doc string) source.Object {
	t.Helper()
	raw, meta := decoded(t, doc)
	o, problem, known := kube.Decode(group(meta.APIVersion), source.Kind(meta.Kind), raw)
	if problem != nil || !known {
		t.Fatalf("%s: %v", doc, problem)
	}
	return o
}

func decoded(t *testing.T, doc string) ([]byte, metav1.PartialObjectMetadata) {
	t.Helper()
	raw, err := yaml.YAMLToJSON([]byte(doc))
	if err != nil {
		t.Fatal(err)
	}
	var meta metav1.PartialObjectMetadata
	if err := json.Unmarshal(raw, &meta); err != nil {
		t.Fatal(err)
	}
	return raw, meta
}

func group(apiVersion string) string {
	g, _, grouped := strings.Cut(apiVersion, "/")
	if !grouped {
		return ""
	}
	return g
}

// request is an admission request; documents that are apart from each other by
// "becomes" are an update.
func request(t *testing.T, text string) *admissionv1.AdmissionRequest {
	t.Helper()
	req := &admissionv1.AdmissionRequest{UID: "u", Operation: admissionv1.Create}
	before, now, update := strings.Cut(text, "\nbecomes\n")
	if update {
		req.Operation = admissionv1.Update
		req.OldObject.Raw, _ = decoded(t, before)
	} else {
		now = before
	}
	raw, meta := decoded(t, now)
	req.Object.Raw, req.Namespace, req.Name = raw, meta.Namespace, meta.Name
	req.Kind = metav1.GroupVersionKind{Group: group(meta.APIVersion), Version: "v1", Kind: meta.Kind}
	return req
}

// TestOnlyWrites: what is not about storing an object is none of our business.
func TestOnlyWrites(t *testing.T) {
	t.Parallel()
	wrong := request(t, wrongPolicy)
	if Review(compileOnly, wrong).Allowed {
		t.Fatal("a wrong policy is allowed")
	}
	for name, change := range map[string]func(*admissionv1.AdmissionRequest){
		"delete":      func(r *admissionv1.AdmissionRequest) { r.Operation = admissionv1.Delete },
		"connect":     func(r *admissionv1.AdmissionRequest) { r.Operation = admissionv1.Connect },
		"subresource": func(r *admissionv1.AdmissionRequest) { r.SubResource = "status" },
		"other kind":  func(r *admissionv1.AdmissionRequest) { r.Kind.Group = "example.com" },
	} {
		req := *wrong
		change(&req)
		if !Review(compileOnly, &req).Allowed {
			t.Errorf("%s is refused", name)
		}
	}
}

// TestUndecodable: an object that cannot be read is refused, the field said.
func TestUndecodable(t *testing.T) {
	t.Parallel()
	answer := Review(compileOnly, request(t, "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p, namespace: shop}\nspec: {mtls: [x]}\n"))
	if answer.Allowed || !strings.HasPrefix(answer.Result.Message, "spec: invalid value: ") {
		t.Errorf("got %+v", answer)
	}
}

const wrongPolicy = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p, namespace: shop}
spec: {rules: [{to: [{operation: {ports: ["70000"]}}]}]}
`

// compileOnly judges an object as if there were no others.
func compileOnly(o source.Object) (problems, conditions []compile.Condition) {
	return model.New(compile.Mesh{}).Judge(o)
}
