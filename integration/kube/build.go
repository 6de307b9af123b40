package main

import (
	"context"
	"debug/buildinfo"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// part is one build: programs of one module.
type part struct {
	module   string   // folder beside this one
	out      string   // below bin/: a folder for packages, a file for "."
	packages []string // what is built
	version  string   // the module whose version tells whether a program is current
	stamp    string   // variable that takes its version, "" = none
	tags     string
	flags    string // more for the linker
	cgo      bool
	cni      string // only needed with this CNI, "" = always
}

var parts = []part{
	{module: "kubernetes", out: "kube", packages: []string{"."}, version: "k8s.io/kubernetes",
		stamp: "k8s.io/component-base/version.gitVersion", flags: "-X k8s.io/component-base/version.gitTreeState=clean"},
	{module: "node", version: "github.com/containerd/containerd/v2", stamp: "github.com/containerd/containerd/v2/version.Version",
		tags: "no_btrfs no_zfs no_devmapper", packages: []string{
			"github.com/containerd/containerd/v2/cmd/containerd",
			"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
			"github.com/containerd/containerd/v2/cmd/ctr"}},
	{module: "node", out: "cni", version: "github.com/containernetworking/plugins", packages: []string{
		"github.com/containernetworking/plugins/plugins/main/bridge",
		"github.com/containernetworking/plugins/plugins/main/loopback",
		"github.com/containernetworking/plugins/plugins/main/ptp",
		"github.com/containernetworking/plugins/plugins/ipam/host-local",
		"github.com/containernetworking/plugins/plugins/meta/portmap"}},
	{module: "runc", version: "github.com/opencontainers/runc", cgo: true, tags: "seccomp netgo osusergo",
		flags: "-linkmode external -extldflags -static", packages: []string{"github.com/opencontainers/runc"}},
	{module: "dns", out: "coredns", packages: []string{"."}, version: "github.com/coredns/coredns"},
	{module: "flannel", out: "flanneld", packages: []string{"."}, version: "github.com/flannel-io/flannel", cni: "flannel"},
}

// links are the names under which the program of module kubernetes is called.
var links = []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl"}

// build makes the programs and images that are not there, or are of other versions
// than the modules say. Programs know which modules they are made of.
func build(ctx context.Context, l layout) error {
	source, err := sourceDir(ctx)
	if err != nil {
		return err
	}
	for _, p := range parts {
		if p.cni != "" && p.cni != cniKind() {
			continue
		}
		version, err := required(filepath.Join(source, p.module, "go.mod"), p.version)
		if err != nil {
			return err
		}
		if p.current(l, version) {
			continue
		}
		start := time.Now()
		fmt.Printf("kube: build %s %s\n", p.version, version)
		if err := p.build(ctx, l, source, version); err != nil {
			return fmt.Errorf("build %s: %w", p.version, err)
		}
		fmt.Printf("kube: built in %s\n", time.Since(start).Round(time.Second))
	}
	for _, name := range links {
		if err := os.Symlink("kube", l.bin(name)); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return buildImages(ctx, l, source)
}

// sourceDir is the folder of this package, asked of go: it works from anywhere in
// the repository.
func sourceDir(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-f", "{{.Dir}}", "github.com/culvert-mesh/culvert/integration/kube").Output()
	if err != nil {
		return "", fmt.Errorf("find the cluster's modules (run it in the repository): %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

// required is the version of a module that a go.mod asks for.
func required(file, module string) (string, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	m := regexp.MustCompile(`(?m)^\s*(?:require )?` + regexp.QuoteMeta(module) + ` (v\S+)`).FindSubmatch(content)
	if m == nil {
		return "", fmt.Errorf("%s does not require %s", file, module)
	}
	return string(m[1]), nil
}

func (p part) files(l layout) []string {
	if p.packages[0] == "." {
		return []string{l.bin(p.out)}
	}
	var files []string
	for _, pkg := range p.packages {
		files = append(files, l.bin(filepath.Join(p.out, path.Base(pkg))))
	}
	return files
}

func (p part) current(l layout, version string) bool {
	for _, file := range p.files(l) {
		info, err := buildinfo.ReadFile(file)
		if err != nil {
			return false
		}
		found := info.Main.Path == p.version && info.Main.Version == version
		for _, d := range info.Deps {
			found = found || d.Path == p.version && d.Version == version
		}
		if !found {
			return false
		}
	}
	return true
}

func (p part) build(ctx context.Context, l layout, source, version string) error {
	flags := "-s -w " + p.flags
	if p.stamp != "" {
		flags += " -X " + p.stamp + "=" + version
	}
	out := l.bin(p.out)
	if p.packages[0] != "." {
		out += "/"
		if err := os.MkdirAll(out, 0o755); err != nil {
			return err
		}
	}
	cgo := "CGO_ENABLED=0"
	if p.cgo {
		cgo = "CGO_ENABLED=1"
		if err := require(toBuild); err != nil {
			return err
		}
	}
	cmd := exec.CommandContext(ctx, "go", append([]string{"build", "-trimpath", "-tags", p.tags, "-ldflags", flags, "-o", out}, p.packages...)...)
	cmd.Dir = filepath.Join(source, p.module)
	cmd.Env = append(os.Environ(), cgo, "GOFLAGS=", "GOMODCACHE="+l.path("cache", "mod"), "GOCACHE="+l.path("cache", "build"))
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Run()
}

// images are what the nodes get; nothing is pulled from anywhere.
var images = []struct{ name, program, entry string }{
	{"pause", "workload", "/workload pause"},
	{"workload", "workload", "/workload"},
	{"coredns", "coredns", "/coredns"},
}

func imageName(name string) string { return "culvert.test/" + name + ":v1" }

func buildImages(ctx context.Context, l layout, source string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", l.bin("workload"), "./workload")
	cmd.Dir, cmd.Env = source, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the workload: %w\n%s", err, out)
	}
	if err := os.MkdirAll(l.path("images"), 0o755); err != nil {
		return err
	}
	for _, i := range images {
		if newer(l.image(i.name), l.bin(i.program)) {
			continue
		}
		if err := writeImage(l.image(i.name), imageName(i.name), i.entry, l.bin(i.program)); err != nil {
			return fmt.Errorf("image %s: %w", i.name, err)
		}
	}
	return nil
}

func newer(a, b string) bool {
	x, errX := os.Stat(a)
	y, errY := os.Stat(b)
	return errX == nil && errY == nil && x.ModTime().After(y.ModTime())
}
