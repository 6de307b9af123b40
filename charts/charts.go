// Package charts holds the Helm charts, for programs that install them.
//
//	culvert ─┬─ base          definitions, roles for people     FS    the files as they are
//	         ├─ controlplane                                    Load  a chart with its dependencies
//	         ├─ cni           node agent and CNI plugin         Profile, Platforms  what may be chosen
//	         ├─ ztunnel
//	         └─ gateway       a waypoint
//
// The umbrella names the others as neighbours (file://../NAME), so that each is one
// folder only; Load puts them together as `helm dependency build` does. Everything
// here is read-only and safe for concurrent use; a chart that Load returns is its
// caller's.
package charts

import (
	"embed"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
	"helm.sh/helm/v4/pkg/chart/loader/archive"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	chartutil "helm.sh/helm/v4/pkg/chart/v2/util"
)

// FS has the charts' files, as charts/ of the repository has them.
//
//go:embed all:base all:controlplane all:cni all:ztunnel all:gateway all:culvert
var FS embed.FS

// Names are the charts, those without dependencies first.
func Names() []string {
	return []string{"base", "controlplane", "cni", "ztunnel", "gateway", "culvert"}
}

// Load returns the chart of that name with its dependencies, ready to be installed.
func Load(name string) (*chart.Chart, error) {
	files, err := Files(name)
	if err != nil {
		return nil, err
	}
	buffered := make([]*archive.BufferedFile, len(files))
	for i, f := range files {
		buffered[i] = &archive.BufferedFile{Name: f.Name, Data: f.Data}
	}
	c, err := loader.LoadFiles(buffered)
	if err != nil {
		return nil, fmt.Errorf("load chart %s: %w", name, err)
	}
	return c, nil
}

// Pack writes a chart with its dependencies as folder/NAME-VERSION.tgz, and returns
// that path.
func Pack(name, folder string) (path string, err error) {
	c, err := Load(name)
	if err != nil {
		return "", err
	}
	if path, err = chartutil.Save(c, folder); err != nil {
		return "", fmt.Errorf("pack chart %s: %w", name, err)
	}
	return path, nil
}

// File is one file of a chart; its name is relative to the chart's folder.
type File struct {
	Name string
	Data []byte
}

// Files returns what a chart's folder would have in it after `helm dependency build`:
// its own files, and those of its dependencies under charts/.
func Files(name string) ([]File, error) {
	if !slices.Contains(Names(), name) {
		return nil, fmt.Errorf("load chart %q: there are %s", name, strings.Join(Names(), ", "))
	}
	files, err := folder(name, "")
	if err != nil {
		return nil, fmt.Errorf("load chart %s: %w", name, err)
	}
	neighbours, err := dependencies(name)
	if err != nil {
		return nil, fmt.Errorf("load chart %s: %w", name, err)
	}
	for _, n := range neighbours {
		more, err := folder(n, path.Join("charts", n))
		if err != nil {
			return nil, fmt.Errorf("load chart %s: %w", name, err)
		}
		files = append(files, more...)
	}
	return files, nil
}

// folder returns a chart's own files, with their names under prefix.
func folder(name, prefix string) (files []File, err error) {
	return files, fs.WalkDir(FS, name, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := FS.ReadFile(p)
		files = append(files, File{Name: path.Join(prefix, strings.TrimPrefix(p, name+"/")), Data: data})
		return err
	})
}

// dependencies returns the neighbours that a chart names.
func dependencies(name string) (names []string, err error) {
	text, err := FS.ReadFile(name + "/Chart.yaml")
	if err != nil {
		return nil, err
	}
	var meta struct {
		Dependencies []struct{ Repository string }
	}
	if err := yaml.Unmarshal(text, &meta); err != nil {
		return nil, fmt.Errorf("read Chart.yaml: %w", err)
	}
	for _, d := range meta.Dependencies {
		neighbour, ok := strings.CutPrefix(d.Repository, "file://../")
		if !ok {
			return nil, fmt.Errorf("dependency %q in Chart.yaml is not beside the chart", d.Repository)
		}
		names = append(names, neighbour)
	}
	return names, nil
}

const profiles = "culvert/files/profile-"

// Profiles are the names of the umbrella's profiles: values for a kind of cluster.
func Profiles() []string {
	found, err := fs.Glob(FS, profiles+"*.yaml")
	if err != nil {
		panic(err) // the pattern is ours
	}
	for i, p := range found {
		found[i] = strings.TrimSuffix(strings.TrimPrefix(p, profiles), ".yaml")
	}
	return found
}

// Profile returns a profile's values, YAML.
func Profile(name string) ([]byte, error) {
	text, err := FS.ReadFile(profiles + name + ".yaml")
	if err != nil {
		return nil, fmt.Errorf("profile %q: there are %s", name, strings.Join(Profiles(), ", "))
	}
	return text, nil
}

// Platforms are what global.platform may be.
func Platforms() []string {
	return []string{"aks", "eks", "gke", "k3d", "k3s", "kind", "microk8s", "minikube", "openshift", "rke2", "talos"}
}
