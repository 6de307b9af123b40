package app

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/culvert-mesh/culvert/cni-plugin/eligible"
	"github.com/culvert-mesh/culvert/cni-plugin/enroll"
	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// writeFile replaces a file in one step: a reader sees the old or the new content.
func writeFile(path string, content []byte) error {
	return eligible.Write(path, content, 0o644)
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

// writeEligibility brings the file up to date.
func (a *Agent) writeEligibility() {
	if a.cfg.Eligibility == "" {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	e := eligible.File{Node: a.cfg.Node, ExcludedNamespaces: a.cfg.Enroll.ExcludedNamespaces,
		AmbientNamespaces: map[string]bool{}, Pods: map[string]eligible.Verdict{}}
	for name, ns := range a.namespaces {
		e.AmbientNamespaces[name] = !a.released && ns.Labels[enroll.LabelDataplaneMode] == "ambient"
	}
	for _, p := range a.pods {
		if !p.removed {
			d := a.decideLocked(p.spec)
			e.Pods[p.spec.Namespace+"/"+p.spec.Name] = eligible.Verdict{UID: string(p.uid), InMesh: d.InMesh, Reason: string(d.Reason)}
		}
	}
	content, err := e.Encode()
	if a.gone || err != nil || string(content) == a.written {
		return
	}
	if err := writeFile(a.cfg.Eligibility, content); err != nil {
		a.log.Error("eligibility file not written", "path", a.cfg.Eligibility, "error", err)
		return
	}
	a.written = string(content)
}
