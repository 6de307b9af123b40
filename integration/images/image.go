package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const (
	module    = "github.com/culvert-mesh/culvert"
	binFolder = "usr/local/bin"
	// nobody is the account of programs that need nothing of the node.
	nobody = "65532"
)

// image says what is in an image. The first program is what it runs.
type image struct {
	name, title string
	programs    []string
	user        string
}

// images are the mesh's. Those that enter the namespaces of pods begin as root, as
// the kernel wants; their manifests drop the capabilities that they do not need.
var images = []image{
	{"ztunnel", "Culvert ztunnel, the proxy of a node", []string{"ztunnel"}, "0"},
	{"waypoint", "Culvert waypoint, the proxy of requests", []string{"waypoint"}, nobody},
	{"controlplane", "Culvert control plane", []string{"controlplane"}, nobody},
	{"cni", "Culvert node agent and CNI plugin", []string{"culvert-agent", "culvert-cni"}, "0"},
	{"culvert", "Culvert command line, and the server that its examples call", []string{"culvert"}, nobody},
}

// packages are where programs are that have not their own name's folder.
var packages = map[string]string{"culvert": "./cli", "culvert-agent": "./cni-plugin/cmd/agent", "culvert-cni": "./cni-plugin/cmd/plugin"}

// programs are those of all images, and their packages.
func programs() map[string]string {
	found := map[string]string{}
	for _, i := range images {
		for _, p := range i.programs {
			found[p] = "./" + p
			if pkg, ok := packages[p]; ok {
				found[p] = pkg
			}
		}
	}
	return found
}

// made is an image for all architectures.
type made struct {
	name      string // with hub and tag
	digest    v1.Hash
	index     v1.ImageIndex
	documents map[string][]byte // SPDX, by file name
	referrers []v1.Image        // the same documents as artifacts, in the order of architectures
}

// assemble makes an image out of what was compiled: binaries is the folder of an
// architecture's programs.
func assemble(r release, i image, arches []string, binaries func(arch string) string) (*made, error) {
	m := &made{name: r.name(i.name), documents: map[string][]byte{}}
	m.index = mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, arch := range arches {
		img, err := oneImage(r, i, arch, binaries(arch))
		if err != nil {
			return nil, err
		}
		platform := &v1.Platform{OS: "linux", Architecture: arch}
		m.index = mutate.AppendManifests(m.index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: platform}})

		document, err := describeParts(r, i, arch, binaries(arch))
		if err != nil {
			return nil, err
		}
		m.documents[i.name+"-"+arch+".spdx.json"] = document
		subject, err := partial.Descriptor(img)
		if err != nil {
			return nil, err
		}
		referrer, err := newReferrer(document, *subject, r)
		if err != nil {
			return nil, err
		}
		m.referrers = append(m.referrers, referrer)
	}
	m.index = mutate.Annotations(m.index, r.labels(i)).(v1.ImageIndex)
	var err error
	m.digest, err = m.index.Digest()
	return m, err
}

// labels are those that the OCI image specification has names for.
func (r release) labels(i image) map[string]string {
	const prefix = "org.opencontainers.image."
	labels := map[string]string{
		prefix + "title":   i.title,
		prefix + "source":  "https://" + module,
		prefix + "version": r.version,
		prefix + "created": r.created.Format(time.RFC3339),
	}
	if r.revision != "" {
		labels[prefix+"revision"] = r.revision
	}
	return labels
}

func oneImage(r release, i image, arch, binaries string) (v1.Image, error) {
	layers := make([]v1.Layer, 0, 1+len(i.programs))
	base, err := newLayer(
		file{name: "etc/passwd", content: []byte("root:x:0:0:root:/:/sbin/nologin\nnonroot:x:" + nobody + ":" + nobody + ":nonroot:/:/sbin/nologin\n"), mode: 0o644},
		file{name: "etc/group", content: []byte("root:x:0:\nnonroot:x:" + nobody + ":\n"), mode: 0o644},
		file{name: "tmp/", mode: 0o1777},
	)
	if err != nil {
		return nil, err
	}
	layers = append(layers, base)
	for _, p := range i.programs {
		content, err := os.ReadFile(filepath.Join(binaries, p))
		if err != nil {
			return nil, err
		}
		l, err := newLayer(file{name: path.Join(binFolder, p), content: content, mode: 0o755})
		if err != nil {
			return nil, err
		}
		layers = append(layers, l)
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err = mutate.ConfigFile(img, &v1.ConfigFile{
		OS: "linux", Architecture: arch, Created: v1.Time{Time: r.created},
		RootFS: v1.RootFS{Type: "layers"},
		Config: v1.Config{
			User: i.user + ":" + i.user, WorkingDir: "/", Labels: r.labels(i),
			Entrypoint: []string{"/" + path.Join(binFolder, i.programs[0])},
			Env:        []string{"PATH=/" + binFolder},
		},
	})
	if err != nil {
		return nil, err
	}
	var adds []mutate.Addendum
	for _, l := range layers {
		adds = append(adds, mutate.Addendum{Layer: l, MediaType: types.OCILayer,
			History: v1.History{Created: v1.Time{Time: r.created}, CreatedBy: "images build"}})
	}
	if img, err = mutate.Append(img, adds...); err != nil {
		return nil, err
	}
	return mutate.Annotations(img, r.labels(i)).(v1.Image), nil
}

// file is what a layer holds; a name that ends in a slash is a folder's.
type file struct {
	name    string
	content []byte
	mode    int64
}

// newLayer packs files, with the folders that they are in. Everything belongs to
// root and is as old as the epoch.
func newLayer(files ...file) (v1.Layer, error) {
	var packed bytes.Buffer
	w := tar.NewWriter(&packed)
	have := map[string]bool{}
	for _, f := range files {
		if err := addFile(w, have, f); err != nil {
			return nil, fmt.Errorf("pack %s: %w", f.name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(packed.Bytes())), nil }
	return tarball.LayerFromOpener(open, tarball.WithMediaType(types.OCILayer),
		tarball.WithCompressedCaching, tarball.WithCompressionLevel(gzip.DefaultCompression))
}

func addFile(w *tar.Writer, have map[string]bool, f file) error {
	for at, c := range f.name {
		if folder := f.name[:at+1]; c == '/' && folder != f.name && !have[folder] {
			have[folder] = true
			if err := w.WriteHeader(header(file{name: folder, mode: 0o755})); err != nil {
				return err
			}
		}
	}
	if err := w.WriteHeader(header(f)); err != nil {
		return err
	}
	_, err := w.Write(f.content)
	return err
}

func header(f file) *tar.Header {
	h := &tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.content)), Typeflag: tar.TypeReg, ModTime: time.Unix(0, 0), Format: tar.FormatPAX}
	if f.name[len(f.name)-1] == '/' {
		h.Typeflag = tar.TypeDir
	}
	return h
}
