package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// Media types of the OCI image specification.
const (
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar+gzip"
)

// blob is something in an image that others name by its digest.
type blob struct {
	mediaType string
	content   []byte
}

func (b blob) digest() string {
	sum := sha256.Sum256(b.content)
	return hex.EncodeToString(sum[:])
}

func (b blob) descriptor() map[string]any {
	return map[string]any{"mediaType": b.mediaType, "digest": "sha256:" + b.digest(), "size": len(b.content)}
}

// writeImage writes an archive in OCI's layout: an image with one program in its
// root folder, the program's other names, and nothing else.
func writeImage(file, name, entrypoint, program string, links ...string) error {
	content, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	files := []entry{{filepath.Base(program), content, 0o755, ""}}
	for _, link := range links {
		files = append(files, entry{link, nil, 0o777, filepath.Base(program)})
	}
	layer, err := archive(files...)
	if err != nil {
		return err
	}
	packed, err := pack(layer)
	if err != nil {
		return err
	}
	config, err := jsonBlob(typeConfig, map[string]any{
		"os": "linux", "architecture": runtime.GOARCH,
		"config": map[string]any{"Entrypoint": strings.Fields(entrypoint), "WorkingDir": "/", "Env": []string{"PATH=/"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + blob{content: layer}.digest()}},
	})
	if err != nil {
		return err
	}
	manifest, err := jsonBlob(typeManifest, map[string]any{
		"schemaVersion": 2, "mediaType": typeManifest, "config": config.descriptor(), "layers": []any{packed.descriptor()},
	})
	if err != nil {
		return err
	}
	named := manifest.descriptor()
	named["annotations"] = map[string]string{"io.containerd.image.name": name}
	index, err := jsonBlob(typeIndex, map[string]any{"schemaVersion": 2, "mediaType": typeIndex, "manifests": []any{named}})
	if err != nil {
		return err
	}
	entries := []entry{{"oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644, ""}, {"index.json", index.content, 0o644, ""}}
	for _, b := range []blob{manifest, config, packed} {
		entries = append(entries, entry{"blobs/sha256/" + b.digest(), b.content, 0o644, ""})
	}
	whole, err := archive(entries...)
	if err != nil {
		return err
	}
	return os.WriteFile(file, whole, 0o644)
}

func jsonBlob(mediaType string, v any) (blob, error) {
	content, err := json.Marshal(v)
	return blob{mediaType, content}, err
}

func pack(layer []byte) (blob, error) {
	var out bytes.Buffer
	z, err := gzip.NewWriterLevel(&out, gzip.BestSpeed)
	if err != nil {
		return blob{}, err
	}
	if _, err = z.Write(layer); err == nil {
		err = z.Close()
	}
	return blob{typeLayer, out.Bytes()}, err
}

// entry is a file of an archive, or a link to one.
type entry struct {
	name    string
	content []byte
	mode    int64
	link    string
}

// archive returns a tar archive that is the same whenever it is made.
func archive(entries ...entry) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, e := range entries {
		header := &tar.Header{Name: e.name, Mode: e.mode, Size: int64(len(e.content)), Typeflag: tar.TypeReg, ModTime: time.Unix(0, 0)}
		if e.link != "" {
			header.Typeflag, header.Linkname = tar.TypeSymlink, e.link
		}
		if err := w.WriteHeader(header); err != nil {
			return nil, err
		}
		if _, err := io.Copy(w, bytes.NewReader(e.content)); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), w.Close()
}
