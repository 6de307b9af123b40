// Package culvert holds the rules of the house: which package may import which
// (floors), where each heavy dependency may be used (doors), and a few habits
// that a machine can check. It contains no product code.
//
//	floor 4   cli  cli/laptop  integration  the programs' main packages
//	floor 3   ztunnel/app  waypoint/app  controlplane/app  cni-plugin/app
//	floor 2   ztunnel/*    waypoint/*    controlplane/*    cni-plugin/*
//	floor 1   pkg/*
//	floor 0   pkg/mesh  pkg/reason  pkg/wire/*
//
// Arrows only point down, and components meet only on the wire and in floors 0
// and 1, so that each can be replaced by somebody else's.
package culvert

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const module = "github.com/culvert-mesh/culvert"

// components are the programs that must never import one another's parts.
var components = []string{"ztunnel", "waypoint", "controlplane", "cni-plugin"}

// door names the only packages that may use a dependency. A pattern ending in
// "/..." covers a tree; one without covers one package.
type door struct {
	dependency string
	packages   []string
	because    string
}

var doors = []door{
	{"github.com/quic-go/quic-go", []string{"pkg/hbone/h3", "waypoint/http/h3"},
		"HTTP/3 is one carrier among others and must stay removable"},
	{"golang.org/x/net/http2", []string{"pkg/hbone/h2", "waypoint/http/h2"},
		"we use its Framer and hpack inside our own codecs, and nothing else of it"},
	{"github.com/spiffe/go-spiffe/v2", []string{"pkg/mesh", "pkg/certs/..."},
		"everybody else speaks mesh.Identity"},
	{"github.com/spiffe/spire-api-sdk", []string{"pkg/certs/spire"},
		"certificates come from whoever gives them; SPIRE is one"},
	{"github.com/vishvananda/netns", []string{"pkg/netns/...", "cni-plugin/...", "cli/laptop/..."},
		"moving a thread between namespaces is done in one place, correctly"},
	{"github.com/vishvananda/netlink", []string{"pkg/netns/...", "cni-plugin/...", "cli/laptop/..."},
		"only those who lay out networks configure the kernel"},
	{"github.com/google/nftables", []string{"cni-plugin/redirect/...", "cli/laptop/..."},
		"a ruleset is a value; one package applies it (cli/laptop: the virtual addresses of its own small cluster)"},
	{"k8s.io/client-go", []string{"controlplane/lease", "controlplane/source/kube", "controlplane/gateway/...", "controlplane/status/...", "controlplane/ca/...", "controlplane/app", "cni-plugin/apiserver", "cni-plugin/app", "cli/install", "controlplane/admission/...", "integration/bench/control"},
		"the CNI plugin and the proxies stay small"},
	{"k8s.io/api", []string{"pkg/netpolicy", "controlplane/lease", "controlplane/source/...", "controlplane/ca/...", "controlplane/gateway/...", "cni-plugin/podsource/...", "cni-plugin/apiserver", "cli/laptop/...", "controlplane/admission/...", "cli/install", "integration/bench/control"},
		"inside, objects are our own trimmed types"},
	{"k8s.io/apimachinery", []string{"pkg/netpolicy", "controlplane/lease", "controlplane/source/...", "controlplane/ca/...", "controlplane/gateway/...", "cni-plugin/podsource/...", "cni-plugin/apiserver", "cli/laptop/...", "controlplane/status/...", "controlplane/admission/...", "cli/install", "integration/bench/control"},
		"inside, objects are our own trimmed types"},
	{"istio.io/api", []string{"controlplane/source/...", "controlplane/compile/...", "controlplane/status/..."},
		"what users write is translated once, by compile"},
	{"istio.io/client-go", []string{"controlplane/source/...", "controlplane/compile/...", "controlplane/status/..."},
		"what users write is translated once, by compile"},
	{"sigs.k8s.io/gateway-api", []string{"controlplane/source/...", "controlplane/compile/...", "controlplane/gateway/...", "controlplane/status/...", "cli/laptop/..."},
		"what users write is translated once, by compile"},
	{"github.com/envoyproxy/go-control-plane/envoy/service/discovery", []string{"pkg/xds/...", "controlplane/xds/..."},
		"one client and one server speak the discovery protocol"},
	{"github.com/envoyproxy/go-control-plane/envoy", []string{"pkg/xds/...", "controlplane/xds/...", "controlplane/compile/...", "controlplane/model/...", "waypoint/xds/..."},
		"Envoy's resources are a wire format, not our model"},
	{"go.opentelemetry.io", []string{"pkg/logging/otlp"}, "logs are slog's and our own; OpenTelemetry is one place to send them to"},
	{"google.golang.org/grpc", []string{"pkg/logging/otlp", "pkg/xds/...", "pkg/wire/ca", "pkg/certs/caclient", "pkg/certs/spire", "controlplane/xds/...", "controlplane/ca", "controlplane/app"},
		"gRPC belongs to the channels to the control plane, not to the data path"},
	{"github.com/go-jose/go-jose/v4", []string{"pkg/token"}, "tokens are checked in one place"},
	{"github.com/miekg/dns", []string{"ztunnel/dns", "cli/laptop/..."}, "DNS messages are made in one place per program"},
	{"github.com/gopacket/gopacket", []string{"cli/laptop/...", "cli"}, "packets are captured by the demo only"},
	{"github.com/containernetworking/cni", []string{"cni-plugin/plugin", "cni-plugin/proof"}, "the runtime's protocol is spoken in one place, from either end"},
	{"github.com/google/go-containerregistry", []string{"integration/images"}, "images are built and pushed by one program, which is no part of the mesh"},
	{"helm.sh/helm/v4", []string{"charts", "cli/install"}, "charts are loaded in one place and installed from one"},
	{"github.com/spf13/cobra", []string{"cli"}, "components are configured by their environment and flags"},
}

// forbidden dependencies are never imported, by anybody.
var forbidden = map[string]string{
	"istio.io/istio":           "a peer mesh's module drags its world in and registers the same protos twice",
	"istio.io/ztunnel":         "a peer mesh's module drags its world in and registers the same protos twice",
	"github.com/golang/glog":   "loggers are passed in",
	"github.com/sirupsen":      "loggers are *slog.Logger and are passed in",
	"github.com/pkg/errors":    "errors are wrapped with %w or reason.New",
	"github.com/stretchr":      "tests use the standard library and go-cmp",
	"kmesh.net":                "a peer mesh's module drags its world in and registers the same protos twice",
	"github.com/golang/mock":   "fakes, not mocks",
	"github.com/hashicorp/hcl": "configuration is YAML that people already have",
}

// pkg is what `go list -json` says about a package.
type pkg struct {
	Dir         string
	ImportPath  string
	Name        string
	GoFiles     []string
	TestGoFiles []string
	Imports     []string
}

func (p pkg) path() string { return strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/") }

func listPackages(t *testing.T) []pkg {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=Dir,ImportPath,Name,GoFiles,TestGoFiles,Imports", "./...").Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %v\n%s", err, exit.Stderr)
		}
		t.Fatalf("go list: %v", err)
	}
	var pkgs []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatalf("go list: %v", err)
		}
		pkgs = append(pkgs, p)
	}
}

// floor returns the floor a package stands on, and -1 for the root.
func floor(path string) int {
	first, rest, _ := strings.Cut(path, "/")
	switch {
	case path == "":
		return -1
	case path == "pkg/mesh" || path == "pkg/reason" || strings.HasPrefix(path, "pkg/wire/"):
		return 0
	case first == "pkg" || path == "charts": // what is installed, as data
		return 1
	case first == "charts":
		return 4
	case first == "cli" || first == "integration":
		return 4
	case rest == "" || strings.HasPrefix(rest, "cmd/"):
		return 4 // a program's main package
	case rest == "app" || strings.HasPrefix(rest, "app/"):
		return 3
	}
	return 2
}

// component returns which of the programs a package is part of, or "".
func component(path string) string {
	first, _, _ := strings.Cut(path, "/")
	for _, c := range components {
		if c == first {
			return c
		}
	}
	return ""
}

func TestFloors(t *testing.T) {
	for _, p := range listPackages(t) {
		from := p.path()
		for _, imp := range p.Imports {
			to, ours := strings.CutPrefix(imp, module+"/")
			if !ours {
				continue
			}
			if why := climbs(from, to); why != "" {
				t.Errorf("%s (floor %d) imports %s (floor %d): %s", from, floor(from), to, floor(to), why)
			}
		}
	}
}

// climbs says why from must not import to, or "".
func climbs(from, to string) string {
	switch {
	case floor(to) > floor(from):
		return "arrows only point down, or a part could not be read without the whole"
	case from == "pkg/mesh" || (from == "pkg/reason" && to != "pkg/mesh"):
		return "the nouns import nothing of ours"
	case floor(from) == 3 && floor(to) == 3 && component(from) != component(to),
		floor(from) == 2 && component(to) != "" && component(from) != component(to),
		floor(from) == 3 && component(to) != "" && component(from) != component(to):
		return "components meet only on the wire and in pkg, so that each can be replaced by somebody else's"
	}
	return ""
}

func TestDoors(t *testing.T) {
	for _, p := range listPackages(t) {
		for _, imp := range p.Imports {
			for dep, why := range forbidden {
				if under(imp, dep) {
					t.Errorf("%s imports %s: never, because %s", p.path(), imp, why)
				}
			}
			if d, ok := doorOf(imp); ok && !admits(d, p.path()) {
				t.Errorf("%s imports %s, which has its door in %s: %s", p.path(), imp, strings.Join(d.packages, ", "), d.because)
			}
		}
	}
}

// doorOf returns the most specific door that guards an import.
func doorOf(imp string) (best door, ok bool) {
	for _, d := range doors {
		if under(imp, d.dependency) && len(d.dependency) > len(best.dependency) {
			best, ok = d, true
		}
	}
	return best, ok
}

func admits(d door, path string) bool {
	for _, pattern := range d.packages {
		if tree, ok := strings.CutSuffix(pattern, "/..."); path == pattern || ok && under(path, tree) {
			return true
		}
	}
	return false
}

func under(path, tree string) bool { return path == tree || strings.HasPrefix(path, tree+"/") }

// TestPackageComments: the package comment is the first thing a reader sees, so
// every package has exactly one, and it is more than its name.
func TestPackageComments(t *testing.T) {
	for _, p := range listPackages(t) {
		if len(p.GoFiles) == 0 {
			continue
		}
		comments := 0
		for _, name := range p.GoFiles {
			f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			if generated(f) || f.Doc == nil {
				continue
			}
			comments++
			if want := map[bool]string{true: "Command ", false: "Package " + p.Name}[p.Name == "main"]; !strings.HasPrefix(f.Doc.Text(), want) {
				t.Errorf("%s/%s: the package comment begins %q, want %q", p.path(), name, firstLine(f.Doc.Text()), want)
			}
		}
		if comments != 1 && !onlyGenerated(t, p) {
			t.Errorf("%s has %d package comments, want 1", p.path(), comments)
		}
	}
}

func onlyGenerated(t *testing.T, p pkg) bool {
	for _, name := range p.GoFiles {
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.PackageClauseOnly|parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		if !generated(f) {
			return false
		}
	}
	return true
}

func generated(f *ast.File) bool { return ast.IsGenerated(f) }

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// TestNames: folders that say nothing collect everything.
func TestNames(t *testing.T) {
	for _, p := range listPackages(t) {
		for _, bad := range []string{"util", "utils", "common", "helper", "helpers", "types", "manager", "misc", "base"} {
			if filepath.Base(p.path()) == bad {
				t.Errorf("%s: a package is named after what it holds or does, not %q", p.path(), bad)
			}
		}
	}
}

// TestEnvironment: the environment is read in main and passed on, so that two
// instances of a program can live in one process and in one test.
func TestEnvironment(t *testing.T) {
	readers := map[string]bool{"Getenv": true, "LookupEnv": true, "Environ": true, "ExpandEnv": true}
	for _, p := range listPackages(t) {
		if p.Name == "main" || floor(p.path()) == -1 {
			continue
		}
		for _, name := range p.GoFiles {
			fset := token.NewFileSet()
			f, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(f, func(n ast.Node) bool {
				sel, ok := n.(*ast.SelectorExpr)
				if !ok || !readers[sel.Sel.Name] {
					return true
				}
				if x, ok := sel.X.(*ast.Ident); ok && x.Name == "os" {
					t.Errorf("%s: os.%s: only main reads the environment", fset.Position(n.Pos()), sel.Sel.Name)
				}
				return true
			})
		}
	}
}

// TestModuleFile: a replace would build something else than what is written.
func TestModuleFile(t *testing.T) {
	mod, err := os.ReadFile("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mod)) {
		if strings.HasPrefix(strings.TrimSpace(line), "replace ") {
			t.Errorf("go.mod: %s", strings.TrimSpace(line))
		}
	}
}

// TestFloorTable keeps the rules themselves honest: each line is an import that
// somebody might try.
func TestFloorTable(t *testing.T) {
	for _, c := range []struct {
		from, to string
		allowed  bool
	}{
		{"ztunnel/proxy", "pkg/hbone", true},
		{"ztunnel/proxy", "ztunnel/route", true},
		{"ztunnel/app", "ztunnel/proxy", true},
		{"ztunnel/proxy", "ztunnel/app", false},
		{"ztunnel/proxy", "cni-plugin/redirect", false},
		{"ztunnel/app", "waypoint/app", false},
		{"pkg/hbone", "ztunnel/route", false},
		{"pkg/mesh", "pkg/reason", false},
		{"pkg/wire/zds", "pkg/mesh", true},
		{"pkg/wire/zds", "pkg/zds", false},
		{"cli/laptop", "ztunnel/app", true},
		{"controlplane/xds", "cli", false},
	} {
		if got := climbs(c.from, c.to) == ""; got != c.allowed {
			t.Errorf("%s → %s: allowed %v, want %v", c.from, c.to, got, c.allowed)
		}
	}
	for _, c := range []struct {
		from, imp string
		allowed   bool
	}{
		{"pkg/hbone/h2", "golang.org/x/net/http2/hpack", true},
		{"ztunnel/proxy", "golang.org/x/net/http2", false},
		{"pkg/xds", "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3", true},
		{"ztunnel/app", "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3", false},
		{"cni-plugin/redirect", "github.com/google/nftables/expr", true},
		{"cni-plugin/app", "github.com/google/nftables", false},
	} {
		d, ok := doorOf(c.imp)
		if got := !ok || admits(d, c.from); got != c.allowed {
			t.Errorf("%s → %s: allowed %v, want %v", c.from, c.imp, got, c.allowed)
		}
	}
}
