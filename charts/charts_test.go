package charts

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/diff"
	chartcommon "helm.sh/helm/v4/pkg/chart/common"
	commonutil "helm.sh/helm/v4/pkg/chart/common/util"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/lint/support"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	chartutil "helm.sh/helm/v4/pkg/chart/v2/util"
	"helm.sh/helm/v4/pkg/engine"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	extensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"github.com/culvert-mesh/culvert/pkg/golden"
)

// render returns what a chart makes of values: the objects' files in order, and the
// notes.
func render(name string, values map[string]any, upgrade bool) (map[string]string, error) {
	c, err := Load(name)
	if err != nil {
		return nil, err
	}
	if values == nil {
		values = map[string]any{}
	}
	if err := chartutil.ProcessDependencies(c, values); err != nil {
		return nil, err
	}
	options := chartcommon.ReleaseOptions{Name: "culvert", Namespace: "culvert-system", Revision: 1, IsInstall: !upgrade, IsUpgrade: upgrade}
	all, err := commonutil.ToRenderValues(c, values, options, chartcommon.DefaultCapabilities)
	if err != nil {
		return nil, err
	}
	return engine.Render(c, all)
}

// text joins the rendered files; definitions, which are as they are, are left out.
func text(files map[string]string) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(files)) {
		content := strings.TrimSpace(files[name])
		if content == "" || strings.HasSuffix(name, "/crds.yaml") {
			continue
		}
		fmt.Fprintf(&b, "# %s\n%s\n\n", path.Base(path.Dir(path.Dir(name)))+"/"+path.Base(name), content)
	}
	return b.String()
}

var position = regexp.MustCompile(`(?m)^@@ .* @@$`)

// difference is what changed, without line numbers: they change with everything.
func difference(before, after map[string]string) string {
	d := diff.Diff("default", []byte(text(before)), "here", []byte(text(after)))
	_, d, _ = bytes.Cut(d, []byte("+++ here\n"))
	return position.ReplaceAllString(string(d), "@@")
}

// failure is an error with its lines in an order of their own: Helm's is random.
func failure(err error) string {
	var lines []string
	chart := ""
	for line := range strings.Lines(err.Error()) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutSuffix(line, ":"); ok {
			chart = name
			continue
		}
		lines = append(lines, strings.TrimSpace(chart+" "+strings.TrimPrefix(line, "- "))+"\n")
	}
	slices.Sort(lines)
	return strings.Join(slices.Compact(lines), "")
}

func parse(t *testing.T, text []byte) map[string]any {
	t.Helper()
	var values map[string]any
	if err := yaml.UnmarshalStrict(text, &values); err != nil {
		t.Fatalf("values: %v", err)
	}
	return values
}

// TestDefaults: what each chart renders when nobody chooses anything.
func TestDefaults(t *testing.T) {
	for _, name := range Names() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			files, err := render(name, nil, false)
			if err != nil {
				t.Fatal(err)
			}
			decode(t, files)
			if name != "culvert" { // it adds the notes only
				golden.File(t, "testdata/"+name+".yaml", text(files))
			}
		})
	}
}

// TestSwitches: each case is what differs from the defaults.
func TestSwitches(t *testing.T) {
	golden.Cases(t, "testdata/*.txtar", func(t *testing.T, c *golden.Case) {
		name := "culvert"
		if c.Has("chart") {
			name = strings.TrimSpace(string(c.Section(t, "chart")))
		}
		before, err := render(name, nil, false)
		if err != nil {
			t.Fatal(err)
		}
		files, err := render(name, parse(t, c.Section(t, "values")), c.Has("upgrade"))
		if err != nil {
			c.Want(t, "want", failure(err))
			return
		}
		decode(t, changing(files))
		c.Want(t, "want", difference(before, files))
	})
}

// TestProfiles: each renders, and says what it changes.
func TestProfiles(t *testing.T) {
	before, err := render("culvert", nil, false)
	if err != nil {
		t.Fatal(err)
	}
	for _, profile := range Profiles() {
		t.Run(profile, func(t *testing.T) {
			t.Parallel()
			values, err := Profile(profile)
			if err != nil {
				t.Fatal(err)
			}
			files, err := render("culvert", parse(t, values), false)
			if err != nil {
				t.Fatal(err)
			}
			decode(t, changing(files))
			golden.File(t, "testdata/profile-"+profile+".diff", difference(before, files))
		})
	}
	if _, err := Profile("none"); err == nil || !strings.Contains(err.Error(), "small") {
		t.Errorf("a profile that is not there: %v", err)
	}
}

// TestPlatforms: each renders, and says what it changes.
func TestPlatforms(t *testing.T) {
	before, err := render("culvert", nil, false)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, platform := range Platforms() {
		files, err := render("culvert", map[string]any{"global": map[string]any{"platform": platform}}, false)
		if err != nil {
			t.Fatal(err)
		}
		decode(t, changing(files))
		fmt.Fprintf(&b, "platform %s\n%s\n", platform, difference(before, files))
	}
	golden.File(t, "testdata/platforms.diff", b.String())
}

var decoder = func() runtime.Decoder {
	s := runtime.NewScheme()
	utilruntime.Must(scheme.AddToScheme(s))
	utilruntime.Must(extensions.AddToScheme(s))
	utilruntime.Must(gatewayv1.Install(s))
	return serializer.NewCodecFactory(s, serializer.EnableStrict).UniversalDeserializer()
}()

// decode reads every object as the API server does: an unknown field is an error.
func decode(t *testing.T, files map[string]string) {
	t.Helper()
	each(t, files, func(string, runtime.Object) {})
}

// changing leaves out the definitions: they are long, and no value changes them.
func changing(files map[string]string) map[string]string {
	maps.DeleteFunc(files, func(name, _ string) bool { return strings.HasSuffix(name, "/crds.yaml") })
	return files
}

// each calls f with every object.
func each(t *testing.T, files map[string]string, f func(name string, object runtime.Object)) {
	t.Helper()
	for name, content := range files {
		if strings.HasSuffix(name, "NOTES.txt") {
			continue
		}
		documents := utilyaml.NewYAMLReader(bufio.NewReader(strings.NewReader(content)))
		for {
			document, err := documents.Read()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			var fields map[string]any
			if err := yaml.UnmarshalStrict(document, &fields); err != nil {
				t.Errorf("%s: %v\n%s", name, err, document)
			} else if len(fields) == 0 {
				continue
			}
			object, _, err := decoder.Decode(document, nil, nil)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			f(name, object)
		}
	}
}

// TestLint: Helm's own linter has nothing to say of any chart, nor of its own
// folder once its dependencies are there.
func TestLint(t *testing.T) {
	for _, name := range Names() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), name)
			files, err := Files(name)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range files {
				path := filepath.Join(dir, f.Name)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, f.Data, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			result := lint.RunAll(dir, nil, "culvert-system", lint.WithSkipSchemaValidation(false))
			for _, m := range result.Messages {
				if m.Severity > support.InfoSev { // "icon is recommended"
					t.Errorf("%s", m)
				}
			}
		})
	}
}

// TestSame: what the charts have in common is the same in each.
func TestSame(t *testing.T) {
	common := func(name string) (string, map[string]any) {
		templates, err := FS.ReadFile(name + "/templates/_culvert.tpl")
		if err != nil && name != "culvert" {
			t.Fatal(err)
		}
		values, err := FS.ReadFile(name + "/values.yaml")
		if err != nil {
			t.Fatal(err)
		}
		schema, err := FS.ReadFile(name + "/values.schema.json")
		if err != nil {
			t.Fatal(err)
		}
		definitions := parse(t, schema)["$defs"].(map[string]any)
		_, global, _ := strings.Cut(string(values), "\nglobal:\n")
		global, _, _ = strings.Cut(global, "\n\n")
		return string(templates), map[string]any{"values": global, "schema": definitions["global"]}
	}
	templates, global := common("controlplane")
	for _, name := range Names() {
		tpl, g := common(name)
		if diff := cmp.Diff(global, g); diff != "" {
			t.Errorf("%s: its global values differ from controlplane's:\n%s", name, diff)
		}
		if diff := cmp.Diff(templates, tpl); diff != "" && name != "culvert" {
			t.Errorf("%s: its _culvert.tpl differs from controlplane's:\n%s", name, diff)
		}
	}
	var table map[string]any
	_, text, _ := strings.Cut(templates, `{{- define "culvert.platforms" -}}`)
	text, _, _ = strings.Cut(text, "{{- end }}")
	if err := yaml.Unmarshal([]byte(text), &table); err != nil {
		t.Fatal(err)
	}
	if got := slices.Sorted(maps.Keys(table)); !slices.Equal(got, Platforms()) {
		t.Errorf("the table of platforms has %v, Platforms has %v", got, Platforms())
	}
	enum := global["schema"].(map[string]any)["properties"].(map[string]any)["platform"].(map[string]any)["enum"].([]any)
	if len(enum) != len(Platforms())+1 {
		t.Errorf("the schema knows the platforms %v, Platforms has %v", enum, Platforms())
	}
}

// TestVersions: charts are released together.
func TestVersions(t *testing.T) {
	umbrella, err := Load("culvert")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range Names() {
		c, err := Load(name)
		if err != nil {
			t.Fatal(err)
		}
		if c.Metadata.Version != umbrella.Metadata.Version || c.Metadata.AppVersion != umbrella.Metadata.AppVersion {
			t.Errorf("%s is %s of %s, culvert %s of %s", name, c.Metadata.Version, c.Metadata.AppVersion, umbrella.Metadata.Version, umbrella.Metadata.AppVersion)
		}
	}
	for _, d := range umbrella.Metadata.Dependencies {
		if d.Version != umbrella.Metadata.Version {
			t.Errorf("culvert wants %s %s", d.Name, d.Version)
		}
	}
}

// TestReleaseFits: Helm keeps a release, chart and objects, in one Secret of at most
// a megabyte.
func TestReleaseFits(t *testing.T) {
	c, err := Load("culvert")
	if err != nil {
		t.Fatal(err)
	}
	files, err := render("culvert", nil, false)
	if err != nil {
		t.Fatal(err)
	}
	var manifest strings.Builder
	for _, content := range files {
		manifest.WriteString(content)
	}
	text, err := json.Marshal(map[string]any{"chart": c, "manifest": manifest.String()})
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	z.Write(text)
	z.Close()
	if size := base64.StdEncoding.EncodedLen(b.Len()); size > 700<<10 {
		t.Errorf("a release is %d bytes, of 1048576", size)
	} else {
		t.Logf("a release is %d bytes", size)
	}
}

// TestPack: what is in an archive is what Load returns.
func TestPack(t *testing.T) {
	path, err := Pack("culvert", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	packed, err := loader.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	loaded, err := Load("culvert")
	if err != nil {
		t.Fatal(err)
	}
	templates := func(c *chart.Chart) map[string]string {
		out := map[string]string{}
		for _, d := range append(c.Dependencies(), c) {
			for _, f := range append(d.Templates, d.Files...) {
				out[d.Name()+"/"+f.Name] = string(f.Data)
			}
		}
		return out
	}
	want := templates(loaded)
	if diff := cmp.Diff(want, templates(packed)); diff != "" || len(want) < 30 {
		t.Errorf("%d files (-loaded +packed):\n%s", len(want), diff)
	}
}

// TestUnknown: a chart that is not there is told from those that are.
func TestUnknown(t *testing.T) {
	if _, err := Load("istio"); err == nil || !strings.Contains(err.Error(), "controlplane") {
		t.Errorf("Load(istio): %v", err)
	}
}

// TestRights: no role can be used to become more than it is.
func TestRights(t *testing.T) {
	files, err := render("culvert", nil, false)
	if err != nil {
		t.Fatal(err)
	}
	roles := 0
	each(t, changing(files), func(name string, object runtime.Object) {
		var rules []rbacv1.PolicyRule
		everywhere := false
		switch r := object.(type) {
		case *rbacv1.ClusterRole:
			rules, everywhere = r.Rules, true
		case *rbacv1.Role:
			rules = r.Rules
		default:
			return
		}
		roles++
		for _, rule := range rules {
			for _, bad := range []string{"*", "escalate", "bind", "impersonate"} {
				if slices.Contains(rule.Verbs, bad) || slices.Contains(rule.Resources, bad) || slices.Contains(rule.APIGroups, bad) {
					t.Errorf("%s: %v", name, rule)
				}
			}
			for _, r := range rule.Resources {
				switch {
				case r == "pods/exec", r == "nodes/proxy", r == "serviceaccounts/token", r == "clusterrolebindings", r == "rolebindings":
					t.Errorf("%s: %s makes one everybody", name, r)
				case r == "secrets" && everywhere:
					t.Errorf("%s: secrets of all namespaces", name)
				case r == "secrets" && len(rule.ResourceNames) == 0 && !slices.Equal(rule.Verbs, []string{"create"}):
					t.Errorf("%s: secrets of others: %v", name, rule)
				}
			}
		}
	})
	if roles < 5 {
		t.Errorf("%d roles were looked at", roles)
	}
}

// TestCapabilities: nobody is privileged, and everything is dropped that is not
// asked for by name.
func TestCapabilities(t *testing.T) {
	files, err := render("culvert", nil, false)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string][]corev1.Capability{}
	each(t, changing(files), func(name string, object runtime.Object) {
		var spec corev1.PodSpec
		switch o := object.(type) {
		case *appsv1.Deployment:
			spec = o.Spec.Template.Spec
		case *appsv1.DaemonSet:
			spec = o.Spec.Template.Spec
		default:
			return
		}
		for _, c := range spec.Containers {
			s := c.SecurityContext
			if s == nil || s.Capabilities == nil || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) ||
				*s.Privileged || *s.AllowPrivilegeEscalation || !*s.ReadOnlyRootFilesystem {
				t.Errorf("%s: security context %+v", name, s)
				continue
			}
			got[c.Name] = s.Capabilities.Add
		}
		if spec.SecurityContext.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
			t.Errorf("%s: no system calls are kept from it", name)
		}
	})
	want := map[string][]corev1.Capability{
		"controlplane": nil,
		"install-cni":  {"SYS_ADMIN", "NET_ADMIN", "SYS_PTRACE", "SYS_CHROOT"},
		"istio-proxy":  {"SYS_ADMIN", "NET_ADMIN"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("capabilities (-want +got):\n%s", diff)
	}
}
