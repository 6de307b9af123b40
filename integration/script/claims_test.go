package script

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// claims are the facts that `culvert demo` shows on one machine, and what shows each of
// them with unmodified pods on the two nodes of a cluster: a script, or a test of
// integration/installed.
var claims = []struct{ fact, shown string }{
	{"everything is ready", "TestInstall"},
	{"frontend on node-1 calls the cart on node-2", "shop"},
	{"the destination's access log has both identities", "shop"},
	{"control: a request outside the mesh can be read", "TestEncrypted"},
	{"no packet carries the plaintext of the mesh's requests", "TestEncrypted"},
	{"everything to port 15008 is TLS 1.3", "TestEncrypted"},
	{"the cart may", "shop"},
	{"the frontend may not", "shop"},
	{"the access log names the policy", "shop"},
	{"its plaintext is refused", "shop"},
	{"nine of ten go to v1", "shop"},
	{"with x-version: v2 all go to v2", "shop"},
	{"POST is answered 403", "shop"},
	{"the waypoint's access log has the caller and the reason", "shop"},
	{"requests to the cart", "kill"},          // while the control plane is killed
	{"requests through the waypoint", "kill"}, // likewise
	{"both ztunnels are replaced by successors", "handover"},
	{"new connections meanwhile", "handover"},
	{"messages on one connection that was open before", "transfer"},
}

// ofALaptop are the scripts whose subject a cluster has not, and what is there in its
// place.
var ofALaptop = map[string]string{
	"several": "a cluster has one mesh; what is left of one is TestUninstall's, and that errors say what to do TestWrongInput's",
}

// TestClaims: everything that the demo shows is shown on a cluster as well.
func TestClaims(t *testing.T) {
	t.Parallel()
	facts := demoFacts(t)
	for _, f := range facts {
		if !slices.ContainsFunc(claims, func(c struct{ fact, shown string }) bool { return c.fact == f }) {
			t.Errorf("the demo shows %q: claims does not say what shows that on a cluster", f)
		}
	}
	tests := clusterTests(t)
	for _, c := range claims {
		if !slices.Contains(facts, c.fact) {
			t.Errorf("%q: the demo does not show that", c.fact)
		}
		if !tests[c.shown] {
			t.Errorf("%q: there is no script and no test %s that runs on a cluster", c.fact, c.shown)
		}
	}
}

// demoFacts are the literal names that the demo gives to what it has seen.
func demoFacts(t *testing.T) (facts []string) {
	t.Helper()
	text := func(e ast.Expr) {
		if lit, ok := e.(*ast.BasicLit); ok && lit.Kind == token.STRING {
			s, err := strconv.Unquote(lit.Value)
			if err != nil {
				t.Fatal(err)
			}
			facts = append(facts, s)
		}
	}
	for _, name := range []string{"demo.go", "demo_steps.go"} {
		file, err := parser.ParseFile(token.NewFileSet(), filepath.Join("../../cli", name), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CallExpr: // d.fact(ok, what, …)
				if f, ok := n.Fun.(*ast.SelectorExpr); ok && f.Sel.Name == "fact" && len(n.Args) > 2 {
					text(n.Args[1])
				}
			case *ast.CompositeLit: // {what, load}
				if n.Type == nil && len(n.Elts) == 2 {
					if _, ok := n.Elts[1].(*ast.Ident); ok {
						text(n.Elts[0])
					}
				}
			}
			return true
		})
	}
	if len(facts) < 15 {
		t.Errorf("the demo shows only %q", facts)
	}
	return facts
}

// clusterTests are the scripts that a cluster runs, and the tests of integration/installed.
func clusterTests(t *testing.T) map[string]bool {
	t.Helper()
	all := map[string]bool{}
	for _, text := range read(t, "../installed/*_test.go") {
		for line := range strings.Lines(text) {
			if rest, ok := strings.CutPrefix(line, "func Test"); ok {
				name, _, _ := strings.Cut(rest, "(")
				all["Test"+name] = true
			}
		}
	}
	for path, text := range read(t, "../scripts/*.txtar") {
		name := strings.TrimSuffix(filepath.Base(path), ".txtar")
		skipped := strings.Contains(text, "\n[!laptop] skip") || strings.Contains(text, "\n[!laptop] stop")
		if _, known := ofALaptop[name]; known != skipped {
			t.Errorf("%s: a cluster leaves it out, or a part: %v; ofALaptop says %v", path, skipped, known)
		}
		all[name] = !skipped
	}
	return all
}

// read returns the files that a pattern names.
func read(t *testing.T, pattern string) map[string]string {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: %d files, %v", pattern, len(files), err)
	}
	all := map[string]string{}
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all[f] = string(raw)
	}
	return all
}
