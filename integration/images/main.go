// Command images builds the container images of the mesh from its static
// binaries, without a container engine, and pushes them to a registry.
//
//	go build ×6 ×architectures        one image per component
//	   │                                │ etc/passwd, etc/group, tmp     a layer that all share
//	   │  debug/buildinfo               │ usr/local/bin/PROGRAM          a layer per program
//	   ▼                                ▼
//	SPDX document ──── refers to ──▶ manifest ◀── index of architectures ◀── NAME:TAG
//
// What is written into the output folder:
//
//	NAME.tar            an image for `ctr images import` and `podman load`
//	NAME-ARCH.spdx.json what it was made of (SPDX 2.3)
//	layout/             all of it as one OCI image layout, documents as referrers
//
// The same source, compiler and arguments give the same bytes: times are those of
// the commit (or SOURCE_DATE_EPOCH), and nothing of the machine is written down.
//
//	images build [flags]   compile, assemble and write
//	images push [flags]    push a layout to HUB, with the credentials of the Docker configuration
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout)
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	if len(args) > 0 {
		switch args[0] {
		case "build":
			return build(ctx, args[1:], out)
		case "push":
			return push(ctx, args[1:], out)
		}
	}
	return errors.New("usage: images build | push [flags]; -h after the verb lists them")
}

// release is what all images of one build have in common.
type release struct {
	hub, tag string
	version  string    // of the sources, for labels and documents
	revision string    // the commit, or ""
	created  time.Time // UTC
}

// name is what an image is asked for by.
func (r release) name(image string) string { return r.hub + "/" + image + ":" + r.tag }

// build is the verb of this name.
func build(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("images build", flag.ContinueOnError)
	dir := flags.String("out", "bin/images", "folder to write into")
	hub := flags.String("hub", "culvert.local", "registry and path in front of the images' names")
	tag := flags.String("tag", "0.1.0", "tag of the images")
	arches := flags.String("arches", "amd64,arm64", `architectures, separated by commas; "host" is this machine's`)
	source := flags.String("source", ".", "root of the repository")
	if err := flags.Parse(args); err != nil {
		return err
	}
	r, err := describe(ctx, *source)
	if err != nil {
		return err
	}
	r.hub, r.tag = strings.TrimSuffix(*hub, "/"), *tag
	platforms, err := architectures(*arches)
	if err != nil {
		return err
	}
	binaries := func(arch string) string { return filepath.Join(*dir, "programs", arch) }
	for _, arch := range platforms {
		if err := compile(ctx, *source, binaries(arch), arch, programs()); err != nil {
			return err
		}
	}
	var all []*made
	for _, i := range images {
		m, err := assemble(r, i, platforms, binaries)
		if err != nil {
			return fmt.Errorf("image %s: %w", i.name, err)
		}
		all = append(all, m)
		fmt.Fprintf(out, "%s@%s (%s)\n", m.name, m.digest, strings.Join(platforms, ", "))
	}
	return write(*dir, all)
}

// architectures reads the flag of this name. Their order does not change what is
// built.
func architectures(list string) ([]string, error) {
	var found []string
	for a := range strings.SplitSeq(list, ",") {
		switch a = strings.TrimSpace(a); a {
		case "host":
			a = runtime.GOARCH
		case "amd64", "arm64":
		default:
			return nil, fmt.Errorf("architecture %q: want amd64, arm64 or host", a)
		}
		found = append(found, a)
	}
	slices.Sort(found)
	return slices.Compact(found), nil
}

// describe asks git and the environment what is being built. A source without
// history is version "unknown" of 1970.
func describe(ctx context.Context, source string) (release, error) {
	r := release{version: "unknown", created: time.Unix(0, 0).UTC()}
	ask := func(args ...string) string {
		out, err := exec.CommandContext(ctx, "git", append([]string{"-C", source}, args...)...).Output()
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(out))
	}
	stamp := os.Getenv("SOURCE_DATE_EPOCH")
	if r.revision = ask("rev-parse", "HEAD"); r.revision != "" {
		r.version = ask("describe", "--tags", "--always", "--dirty")
		if stamp == "" {
			stamp = ask("show", "--no-patch", "--format=%ct", "HEAD")
		}
	}
	if stamp == "" {
		return r, nil
	}
	seconds, err := strconv.ParseInt(stamp, 10, 64)
	if err != nil {
		return r, fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
	}
	r.created = time.Unix(seconds, 0).UTC()
	return r, nil
}

// compile builds programs for an architecture into a folder.
func compile(ctx context.Context, source, dir, arch string, programs map[string]string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, pkg := range programs {
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, name), pkg)
		cmd.Dir = source
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOOS=linux", "GOARCH="+arch, "GOAMD64=", "GOARM64=")
		if output, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("compile %s for %s: %w\n%s", name, arch, err, output)
		}
	}
	return nil
}
