package app

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/culvert-mesh/culvert/cni-plugin/enroll"
	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// writeFile replaces a file in one step: a reader sees the old or the new content.
func writeFile(path string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err := errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		os.Remove(f.Name())
		return err
	}
	return os.Rename(f.Name(), path)
}

// patchDir is a folder of merge patches, one file per pod, named by its UID.
type patchDir string

// patch is a merge patch of a pod's annotations.
type patch struct {
	APIVersion string    `json:"apiVersion"`
	Kind       string    `json:"kind"`
	Metadata   patchMeta `json:"metadata"`
}

type patchMeta struct {
	Namespace   string            `json:"namespace"`
	Name        string            `json:"name"`
	Annotations map[string]string `json:"annotations"`
}

// write says on the pod how it is redirected; "" says nothing and leaves no file.
func (d patchDir) write(uid mesh.PodUID, p mesh.PodInfo, redirection string) error {
	path := filepath.Join(string(d), string(uid)+".yaml")
	if redirection == "" {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	}
	content, err := json.MarshalIndent(patch{"v1", "Pod", patchMeta{p.Namespace, p.Name,
		map[string]string{enroll.AnnotationRedirection: redirection}}}, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(path, append(content, '\n'))
}

// sweep removes what an earlier agent wrote for pods that are gone.
func (d patchDir) sweep(pods map[mesh.PodUID]enroll.Pod) {
	entries, err := os.ReadDir(string(d))
	if err != nil {
		return
	}
	for _, e := range entries {
		uid, ok := strings.CutSuffix(e.Name(), ".yaml")
		if _, exists := pods[mesh.PodUID(uid)]; ok && !exists {
			os.Remove(filepath.Join(string(d), e.Name()))
		}
	}
}

// eligibility is the file by which a CNI plugin decides while no agent answers:
// pods that are clearly outside the mesh may start.
type eligibility struct {
	Node               string             `json:"node"`
	ExcludedNamespaces []string           `json:"excludedNamespaces"`
	AmbientNamespaces  map[string]bool    `json:"ambientNamespaces"` // every namespace known
	Pods               map[string]verdict `json:"pods"`              // by "namespace/name"
}

type verdict struct {
	UID    mesh.PodUID   `json:"uid"`
	InMesh bool          `json:"inMesh"`
	Reason enroll.Reason `json:"reason"`
}

// writeEligibility brings the file up to date.
func (a *Agent) writeEligibility() {
	if a.cfg.Eligibility == "" {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	e := eligibility{a.cfg.Node, a.cfg.Enroll.ExcludedNamespaces, map[string]bool{}, map[string]verdict{}}
	for name, ns := range a.namespaces {
		e.AmbientNamespaces[name] = ns.Labels[enroll.LabelDataplaneMode] == "ambient"
	}
	for _, p := range a.pods {
		if !p.removed {
			d := enroll.Decide(a.cfg.Enroll, p.spec, a.namespaces[p.spec.Namespace])
			e.Pods[p.spec.Namespace+"/"+p.spec.Name] = verdict{p.uid, d.InMesh, d.Reason}
		}
	}
	content, err := json.MarshalIndent(e, "", "  ")
	if err != nil || string(content) == a.written {
		return
	}
	if err := writeFile(a.cfg.Eligibility, append(content, '\n')); err != nil {
		a.log.Error("eligibility file not written", "path", a.cfg.Eligibility, "error", err)
		return
	}
	a.written = string(content)
}
