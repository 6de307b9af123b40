package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"debug/buildinfo"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log"
	"maps"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

var testRelease = release{hub: "hub.test/mesh", tag: "v9", version: "v9.8.7", revision: "abcdef", created: time.Unix(1700000000, 0).UTC()}

// compiled is a small program, as two builds made it. hollow is the same one without
// its code: what its modules are is all that images need of it, and zeros are
// compressed quickly.
var (
	compiled [2]string
	hollow   string
)

// built is a folder with all images for both architectures, and what write was
// given for it.
var built struct {
	dir string
	all []*made
}

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "images-")
	if err != nil {
		log.Print(err)
		return 1
	}
	defer os.RemoveAll(dir)
	for i, folder := range []string{"one", "two"} {
		compiled[i] = filepath.Join(dir, folder, "tiny")
		err := compile(context.Background(), ".", filepath.Dir(compiled[i]), "amd64", map[string]string{"tiny": "./testdata/tiny"})
		if err != nil {
			log.Print(err)
			return 1
		}
	}
	hollow = filepath.Join(dir, "hollow")
	if err := hollowOut(compiled[0], hollow); err != nil {
		log.Print(err)
		return 1
	}
	built.dir = filepath.Join(dir, "images")
	if built.all, err = testBuild(built.dir, "amd64", "arm64"); err != nil {
		log.Print(err)
		return 1
	}
	return m.Run()
}

// hollowOut copies a program, with zeros for all sections but the one with its modules.
func hollowOut(program, to string) error {
	content, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	parsed, err := elf.NewFile(bytes.NewReader(content))
	if err != nil {
		return err
	}
	for _, s := range parsed.Sections {
		if s.Type == elf.SHT_PROGBITS && s.Name != ".go.buildinfo" {
			clear(content[s.Offset:][:s.Size])
		}
	}
	return os.WriteFile(to, content, 0o755)
}

// testBuild writes all images with the small program in the place of each.
func testBuild(dir string, arches ...string) ([]*made, error) {
	programsOf := filepath.Join(dir, "programs")
	if err := os.MkdirAll(programsOf, 0o755); err != nil {
		return nil, err
	}
	for p := range programs() {
		if err := os.Symlink(hollow, filepath.Join(programsOf, p)); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
	}
	var all []*made
	for _, i := range images {
		m, err := assemble(testRelease, i, arches, func(string) string { return programsOf })
		if err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	return all, write(dir, all)
}

// TestReproducible builds again, over a build for fewer architectures, and wants
// the same files.
func TestReproducible(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, arches := range [][]string{{"amd64"}, {"amd64", "arm64"}} {
		if _, err := testBuild(dir, arches...); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(sums(t, built.dir), sums(t, dir)); diff != "" {
		t.Errorf("a second build differs (-first +second):\n%s", diff)
	}
}

// TestCompileReproducible: the same program from two folders, compiled again.
func TestCompileReproducible(t *testing.T) {
	t.Parallel()
	if diff := cmp.Diff(sums(t, filepath.Dir(compiled[0])), sums(t, filepath.Dir(compiled[1]))); diff != "" {
		t.Errorf("compiled twice:\n%s", diff)
	}
	info, err := buildinfo.ReadFile(compiled[0])
	if err != nil {
		t.Fatal(err)
	}
	settings := map[string]string{}
	for _, s := range info.Settings {
		settings[s.Key] = s.Value
	}
	if settings["CGO_ENABLED"] != "0" || settings["-trimpath"] != "true" {
		t.Errorf("compiled with %v", settings)
	}
}

// sums are the checksums of the files below a folder.
func sums(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		content, err := os.ReadFile(path)
		sum := sha256.Sum256(content)
		rel, _ := filepath.Rel(dir, path)
		found[rel] = hex.EncodeToString(sum[:])
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestImages reads the images back as a container runtime would.
func TestImages(t *testing.T) {
	t.Parallel()
	written, err := layout.ImageIndexFromPath(filepath.Join(built.dir, "layout"))
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(written); err != nil {
		t.Error(err)
	}
	for at, m := range built.all {
		i := images[at]
		manifest, err := m.index.IndexManifest()
		if err != nil {
			t.Fatal(err)
		}
		var platforms []string
		for _, d := range manifest.Manifests {
			platforms = append(platforms, d.Platform.String())
			img, err := m.index.Image(d.Digest)
			if err != nil {
				t.Fatal(err)
			}
			checkImage(t, i, d.Platform.Architecture, img)
		}
		if want := []string{"linux/amd64", "linux/arm64"}; !slices.Equal(platforms, want) {
			t.Errorf("%s is for %v, want %v", i.name, platforms, want)
		}
		checkArchive(t, filepath.Join(built.dir, i.name+".tar"), "hub.test/mesh/"+i.name+":v9", m.digest)
	}
}

func checkImage(t *testing.T, i image, arch string, img v1.Image) {
	t.Helper()
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	type facts struct {
		Arch, Entry, User, Version, Revision, Created string
	}
	label := func(name string) string { return config.Config.Labels["org.opencontainers.image."+name] }
	user := i.user + ":" + i.user
	got := facts{config.Architecture, strings.Join(config.Config.Entrypoint, " "), config.Config.User, label("version"), label("revision"), label("created")}
	want := facts{arch, "/usr/local/bin/" + i.programs[0], user, "v9.8.7", "abcdef", "2023-11-14T22:13:20Z"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s %s (-want +got):\n%s", i.name, arch, diff)
	}
	modes := map[string]int64{}
	for r := tar.NewReader(mutate.Extract(img)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		modes[strings.TrimSuffix(h.Name, "/")] = h.Mode
		if h.Uid != 0 || h.ModTime.Unix() != 0 {
			t.Errorf("%s: %s belongs to %d and is of %s", i.name, h.Name, h.Uid, h.ModTime)
		}
	}
	wantModes := map[string]int64{"etc": 0o755, "etc/passwd": 0o644, "etc/group": 0o644, "tmp": 0o1777, "usr": 0o755, "usr/local": 0o755, "usr/local/bin": 0o755}
	for _, p := range i.programs {
		wantModes["usr/local/bin/"+p] = 0o755
	}
	if diff := cmp.Diff(wantModes, modes); diff != "" {
		t.Errorf("files of %s (-want +got):\n%s", i.name, diff)
	}
}

// checkArchive wants exactly one image in an archive, under the names that
// containerd and podman look for.
func checkArchive(t *testing.T, file, name string, digest v1.Hash) {
	t.Helper()
	files := map[string][]byte{}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if files[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
	index, err := v1.ParseIndexManifest(bytes.NewReader(files["index.json"]))
	if err != nil {
		t.Fatal(err)
	}
	if len(index.Manifests) != 1 || index.Manifests[0].Digest != digest {
		t.Fatalf("%s holds %v, want only %s", file, index.Manifests, digest)
	}
	want := map[string]string{"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}
	if diff := cmp.Diff(want, index.Manifests[0].Annotations); diff != "" {
		t.Errorf("names in %s (-want +got):\n%s", file, diff)
	}
	if files["oci-layout"] == nil || files["blobs/sha256/"+digest.Hex] == nil {
		t.Errorf("%s is no layout: it has %v", file, slices.Sorted(maps.Keys(files)))
	}
}

// TestDocuments: what a program says of its modules is in the document, and the
// document is found from the image.
func TestDocuments(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile(filepath.Join(built.dir, "cni-amd64.spdx.json"))
	if err != nil {
		t.Fatal(err)
	}
	var d spdxDocument
	if err := json.Unmarshal(raw, &d); err != nil {
		t.Fatal(err)
	}
	var names []string
	ids := map[string]bool{d.ID: true}
	for _, p := range d.Packages {
		names = append(names, p.Name)
		ids[p.ID] = true
	}
	for _, f := range d.Files {
		names = append(names, f.Name)
		ids[f.ID] = true
	}
	for _, want := range []string{"cni", "stdlib", module, "golang.org/x/sys", "./usr/local/bin/culvert-agent", "./usr/local/bin/culvert-cni"} {
		if !slices.Contains(names, want) {
			t.Errorf("the document does not name %s: %v", want, names)
		}
	}
	if want := len(d.Packages) + len(d.Files) + 1; len(ids) != want {
		t.Errorf("%d identifiers for %d elements", len(ids), want)
	}
	for _, r := range d.Relationships {
		if !ids[r.From] || !ids[r.To] {
			t.Errorf("%v: one end is not in the document", r)
		}
	}
}

// TestPush pushes to a registry and reads images and documents from there.
func TestPush(t *testing.T) {
	t.Parallel()
	for _, withReferrers := range []bool{true, false} {
		server := httptest.NewServer(registry.New(
			registry.WithReferrersSupport(withReferrers), registry.Logger(log.New(io.Discard, "", 0))))
		defer server.Close()
		hub := strings.TrimPrefix(server.URL, "http://") + "/some/where"
		var out bytes.Buffer
		if err := run(t.Context(), []string{"push", "-layout", filepath.Join(built.dir, "layout"), "-hub", hub + "/", "-tag", "other"}, &out); err != nil {
			t.Fatal(err)
		}
		for at, m := range built.all {
			if want := hub + "/" + images[at].name + ":other@" + m.digest.String(); !strings.Contains(out.String(), want) {
				t.Errorf("push did not say %s:\n%s", want, out.String())
			}
			checkPushed(t, hub+"/"+images[at].name, images[at].name, m.digest)
		}
	}
}

func checkPushed(t *testing.T, repository, image string, digest v1.Hash) {
	t.Helper()
	tag, err := name.NewTag(repository + ":other")
	if err != nil {
		t.Fatal(err)
	}
	index, err := remote.Index(tag)
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := index.Digest(); got != digest {
		t.Errorf("%s is %s, want %s", tag, got, digest)
	}
	if err := validate.Index(index); err != nil {
		t.Error(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range manifest.Manifests {
		found, err := remote.Referrers(tag.Digest(d.Digest.String()))
		if err != nil {
			t.Fatal(err)
		}
		about, err := found.IndexManifest()
		if err != nil {
			t.Fatal(err)
		}
		if len(about.Manifests) != 1 {
			t.Fatalf("%s for %s is referred to by %v, want one document", tag, d.Platform, about.Manifests)
		}
		artifact, err := remote.Image(tag.Digest(about.Manifests[0].Digest.String()))
		if err != nil {
			t.Fatal(err)
		}
		if m, err := artifact.Manifest(); err != nil || m.ArtifactType != spdxType || m.Subject.Digest != d.Digest {
			t.Errorf("%s for %s is referred to by %+v, %v", tag, d.Platform, m, err)
		}
		layers, err := artifact.Layers()
		if err != nil {
			t.Fatal(err)
		}
		content, err := layers[0].Compressed()
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(content)
		if err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile(filepath.Join(built.dir, image+"-"+d.Platform.Architecture+".spdx.json"))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s for %s: the document in the registry is another", tag, d.Platform)
		}
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	empty := t.TempDir()
	for want, args := range map[string][]string{
		"usage":                       nil,
		`architecture "s390x"`:        {"build", "-out", empty, "-arches", "amd64,s390x"},
		"-hub is needed":              {"push", "-layout", empty},
		"`make images`":               {"push", "-layout", empty, "-hub", "127.0.0.1:1/x"},
		"repository can only contain": {"push", "-layout", filepath.Join(built.dir, "layout"), "-hub", "127.0.0.1:1/UPPER"},
	} {
		if err := run(t.Context(), args, io.Discard); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("images %v: error %v, want one with %q", args, err, want)
		}
	}
}
