package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Annotations by which an image is found in an archive or a layout: containerd
// looks for the first one, everybody else for the second.
const (
	nameForContainerd = "io.containerd.image.name"
	nameForOthers     = "org.opencontainers.image.ref.name"
)

// write writes images and their documents into the output folder, in place of what
// an earlier build left there.
func write(dir string, all []*made) error {
	for _, m := range all {
		for name, document := range m.documents {
			if err := os.WriteFile(filepath.Join(dir, name), document, 0o644); err != nil {
				return err
			}
		}
		if err := m.writeArchive(filepath.Join(dir, lastElement(m.name)+".tar")); err != nil {
			return fmt.Errorf("write %s: %w", m.name, err)
		}
	}
	whole := filepath.Join(dir, "layout")
	if err := os.RemoveAll(whole); err != nil {
		return err
	}
	return writeLayout(whole, all)
}

// named is the descriptor's annotations that give an image its name.
func named(name string) map[string]string {
	return map[string]string{nameForContainerd: name, nameForOthers: name}
}

// writeArchive writes a layout with this image and nothing else as a tar archive.
func (m *made) writeArchive(file string) error {
	dir, err := os.MkdirTemp(filepath.Dir(file), "archive-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	whole := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex), mutate.IndexAddendum{
		Add: m.index, Descriptor: v1.Descriptor{Annotations: named(m.name)}})
	if _, err := layout.Write(dir, whole); err != nil {
		return err
	}
	out, err := os.CreateTemp(filepath.Dir(file), "archive-*.tar")
	if err != nil {
		return err
	}
	defer os.Remove(out.Name())
	err = archive(out, dir)
	if err = errors.Join(err, out.Chmod(0o644), out.Close()); err != nil {
		return err
	}
	return os.Rename(out.Name(), file) // whoever imports meanwhile has the old one whole
}

// archive writes a folder's files, sorted by name and without times.
func archive(out io.Writer, dir string) error {
	w := tar.NewWriter(out)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if err := w.WriteHeader(header(file{name: filepath.ToSlash(name), content: content, mode: 0o644})); err != nil {
			return err
		}
		_, err = w.Write(content)
		return err
	})
	if err != nil {
		return err
	}
	return w.Close()
}

// writeLayout writes a new layout with all images, and after them what refers to
// them.
func writeLayout(dir string, all []*made) error {
	p, err := layout.Write(dir, mutate.IndexMediaType(empty.Index, types.OCIImageIndex))
	if err != nil {
		return err
	}
	for _, m := range all {
		if err := p.AppendIndex(m.index, layout.WithAnnotations(named(m.name))); err != nil {
			return fmt.Errorf("write %s: %w", m.name, err)
		}
	}
	for _, m := range all {
		for _, r := range m.referrers {
			if err := p.AppendImage(r); err != nil {
				return fmt.Errorf("write the documents of %s: %w", m.name, err)
			}
		}
	}
	return nil
}

// referrersOf are the artifacts in a layout whose subject is one of an image's
// manifests.
func referrersOf(p layout.Path, image v1.Descriptor) ([]v1.Descriptor, error) {
	raw, err := p.Bytes(image.Digest)
	if err != nil {
		return nil, err
	}
	parts, err := v1.ParseIndexManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	index, err := p.ImageIndex()
	if err != nil {
		return nil, err
	}
	all, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	var found []v1.Descriptor
	for _, d := range all.Manifests {
		if d.MediaType != types.OCIManifestSchema1 {
			continue
		}
		raw, err := p.Bytes(d.Digest)
		if err != nil {
			return nil, err
		}
		m, err := v1.ParseManifest(bytes.NewReader(raw))
		if err != nil {
			return nil, err
		}
		if m.Subject != nil && slices.ContainsFunc(parts.Manifests, func(part v1.Descriptor) bool { return part.Digest == m.Subject.Digest }) {
			found = append(found, d)
		}
	}
	return found, nil
}
