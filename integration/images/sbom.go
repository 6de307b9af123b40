package main

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// spdxType is the media type of a document, and of the artifact that carries it.
const spdxType = "application/spdx+json"

// An SPDX 2.3 document, as far as one is made here:
// https://spdx.github.io/spdx-spec/v2.3/
type (
	spdxDocument struct {
		Version       string             `json:"spdxVersion"`
		License       string             `json:"dataLicense"`
		ID            string             `json:"SPDXID"`
		Name          string             `json:"name"`
		Namespace     string             `json:"documentNamespace"`
		Creation      spdxCreation       `json:"creationInfo"`
		Packages      []spdxPackage      `json:"packages"`
		Files         []spdxFile         `json:"files"`
		Relationships []spdxRelationship `json:"relationships"`
	}
	spdxCreation struct {
		Created  string   `json:"created"`
		Creators []string `json:"creators"`
	}
	spdxPackage struct {
		ID            string     `json:"SPDXID"`
		Name          string     `json:"name"`
		Version       string     `json:"versionInfo,omitempty"`
		Location      string     `json:"downloadLocation"`
		FilesAnalyzed bool       `json:"filesAnalyzed"`
		Comment       string     `json:"comment,omitempty"`
		References    []spdxLink `json:"externalRefs,omitempty"`
		Purpose       string     `json:"primaryPackagePurpose,omitempty"`
	}
	spdxLink struct {
		Category string `json:"referenceCategory"`
		Type     string `json:"referenceType"`
		Locator  string `json:"referenceLocator"`
	}
	spdxFile struct {
		ID        string         `json:"SPDXID"`
		Name      string         `json:"fileName"`
		Types     []string       `json:"fileTypes"`
		Checksums []spdxChecksum `json:"checksums"`
	}
	spdxChecksum struct {
		Algorithm string `json:"algorithm"`
		Value     string `json:"checksumValue"`
	}
	spdxRelationship struct {
		From string `json:"spdxElementId"`
		Type string `json:"relationshipType"`
		To   string `json:"relatedSpdxElement"`
	}
)

// describeParts writes down which modules an image's programs were linked from, as
// the linker noted it in them.
func describeParts(r release, i image, arch, binaries string) ([]byte, error) {
	const imageID = "SPDXRef-Image"
	d := spdxDocument{
		Version: "SPDX-2.3", License: "CC0-1.0", ID: "SPDXRef-DOCUMENT", Name: i.name + "-" + arch,
		Creation: spdxCreation{r.created.Format(time.RFC3339), []string{"Tool: culvert-images"}},
		Packages: []spdxPackage{{ID: imageID, Name: i.name, Version: r.version, Location: "NOASSERTION", Purpose: "CONTAINER"}},
		Relationships: []spdxRelationship{
			{"SPDXRef-DOCUMENT", "DESCRIBES", imageID},
		},
	}
	whole := sha256.New()
	modules := map[string]spdxPackage{}
	for _, name := range i.programs {
		f, used, err := describeProgram(filepath.Join(binaries, name), name)
		if err != nil {
			return nil, err
		}
		whole.Write([]byte(f.Checksums[0].Value))
		d.Files = append(d.Files, f)
		d.Relationships = append(d.Relationships, spdxRelationship{imageID, "CONTAINS", f.ID})
		for _, p := range used {
			modules[p.ID] = p
			d.Relationships = append(d.Relationships, spdxRelationship{f.ID, "STATIC_LINK", p.ID})
		}
	}
	for _, p := range modules {
		d.Packages = append(d.Packages, p)
	}
	slices.SortFunc(d.Packages[1:], func(a, b spdxPackage) int { return strings.Compare(a.ID, b.ID) })
	d.Namespace = fmt.Sprintf("https://%s/spdx/%s-%s", module, d.Name, hex.EncodeToString(whole.Sum(nil)))
	raw, err := json.MarshalIndent(d, "", " ")
	return append(raw, '\n'), err
}

// describeProgram returns a program as a file, and the modules that are in it.
func describeProgram(location, name string) (spdxFile, []spdxPackage, error) {
	content, err := os.ReadFile(location)
	if err != nil {
		return spdxFile{}, nil, err
	}
	info, err := buildinfo.ReadFile(location)
	if err != nil {
		return spdxFile{}, nil, fmt.Errorf("read what %s was built from: %w", name, err)
	}
	sum := sha256.Sum256(content)
	f := spdxFile{
		ID: "SPDXRef-File-" + name, Name: "./" + path.Join(binFolder, name), Types: []string{"BINARY"},
		Checksums: []spdxChecksum{{"SHA256", hex.EncodeToString(sum[:])}},
	}
	used := []spdxPackage{
		goPackage("stdlib", strings.TrimPrefix(info.GoVersion, "go"), ""),
		goPackage(info.Main.Path, info.Main.Version, info.Main.Sum),
	}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		used = append(used, goPackage(m.Path, m.Version, m.Sum))
	}
	return f, used, nil
}

// goPackage is a module. Its sum is of go's own kind, which SPDX has no name for.
func goPackage(module, version, sum string) spdxPackage {
	p := spdxPackage{
		ID: "SPDXRef-Module-" + identifier(module+"-"+version), Name: module, Version: version, Location: "NOASSERTION",
		References: []spdxLink{{"PACKAGE-MANAGER", "purl", "pkg:golang/" + strings.ToLower(module) + "@" + strings.ReplaceAll(version, "+", "%2B")}},
		Purpose:    "LIBRARY",
	}
	if sum != "" {
		p.Comment = "go.sum " + sum
	}
	return p
}

// identifier leaves of s what an SPDX identifier may hold.
func identifier(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '.', r == '-':
			return r
		}
		return '-'
	}, s)
}

// artifact is a document in the form of an image: an empty configuration, and the
// document as its only layer.
type artifact struct {
	manifest []byte
	document partial.CompressedLayer
}

// emptyConfig is what OCI's specification has artifacts name that need no
// configuration.
const (
	emptyConfig     = "{}"
	emptyConfigType = types.MediaType("application/vnd.oci.empty.v1+json")
)

// newReferrer returns a document as an artifact that refers to an image.
func newReferrer(document []byte, subject v1.Descriptor, r release) (v1.Image, error) {
	layer := documentLayer(document)
	content, err := partial.Descriptor(layer)
	if err != nil {
		return nil, err
	}
	config, size, err := v1.SHA256(strings.NewReader(emptyConfig))
	if err != nil {
		return nil, err
	}
	subject.Annotations, subject.Platform = nil, nil
	manifest, err := json.Marshal(v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1, ArtifactType: spdxType,
		Config:      v1.Descriptor{MediaType: emptyConfigType, Digest: config, Size: size},
		Layers:      []v1.Descriptor{*content},
		Subject:     &subject,
		Annotations: map[string]string{"org.opencontainers.image.created": r.created.Format(time.RFC3339)},
	})
	if err != nil {
		return nil, err
	}
	return partial.CompressedToImage(&artifact{manifest, layer})
}

// documentLayer is a layer with a document as it is.
func documentLayer(document []byte) v1.Layer { return static.NewLayer(document, spdxType) }

func (a *artifact) RawConfigFile() ([]byte, error)                         { return []byte(emptyConfig), nil }
func (a *artifact) MediaType() (types.MediaType, error)                    { return types.OCIManifestSchema1, nil }
func (a *artifact) RawManifest() ([]byte, error)                           { return a.manifest, nil }
func (a *artifact) LayerByDigest(v1.Hash) (partial.CompressedLayer, error) { return a.document, nil }
