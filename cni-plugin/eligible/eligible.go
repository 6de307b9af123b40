// Package eligible is the file in which the node agent keeps who is in the mesh,
// so that the node can go on while no agent answers.
//
//	agent  ── Write, at every change ──▶  eligibility.json
//	plugin ── Load, when nobody answers ─▶ Outside? the pod may start : it must wait
//
// Pods that are clearly outside the mesh start as if there were no mesh. Every
// other one waits for the agent, since a pod of the mesh that starts uncaptured
// would be open to anybody. A File is a value; Write replaces the file in one
// step, so readers see the old or the new one.
package eligible

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// File is what the agent knows. The zero value knows nobody.
type File struct {
	Node               string             `json:"node"`
	ExcludedNamespaces []string           `json:"excludedNamespaces"`
	AmbientNamespaces  map[string]bool    `json:"ambientNamespaces"` // every namespace known
	Pods               map[string]Verdict `json:"pods"`              // by "namespace/name"
}

// Verdict is the decision about one pod.
type Verdict struct {
	UID    string `json:"uid"`
	InMesh bool   `json:"inMesh"`
	Reason string `json:"reason"`
}

// Outside reports whether a pod is clearly outside the mesh, and why or why not.
// uid may be empty; when it is not, a verdict about an earlier pod of the same
// name does not count.
//
// A pod that the agent has not seen is judged by its namespace: that must be
// known, not be labelled for the mesh, and hold no pod that is labelled by itself.
func (f File) Outside(namespace, name, uid string) (bool, string) {
	if slices.Contains(f.ExcludedNamespaces, namespace) {
		return true, "namespace " + namespace + " is excluded from the mesh"
	}
	v, known := f.Pods[namespace+"/"+name]
	if known && (uid == "" || v.UID == uid) {
		return !v.InMesh, v.Reason
	}
	ambient, known := f.AmbientNamespaces[namespace]
	switch {
	case !known:
		return false, "namespace " + namespace + " is not known yet"
	case ambient:
		return false, "namespace " + namespace + " is in the mesh"
	case f.someoneIn(namespace):
		return false, "namespace " + namespace + " has pods in the mesh"
	}
	return true, "namespace " + namespace + " is not in the mesh"
}

func (f File) someoneIn(namespace string) bool {
	for key, v := range f.Pods {
		if v.InMesh && len(key) > len(namespace) && key[:len(namespace)] == namespace && key[len(namespace)] == '/' {
			return true
		}
	}
	return false
}

// Load reads the file.
func Load(path string) (File, error) {
	var f File
	raw, err := os.ReadFile(path)
	if err != nil {
		return f, err
	}
	if err := json.Unmarshal(raw, &f); err != nil {
		return File{}, fmt.Errorf("eligibility file %s: %w", path, err)
	}
	return f, nil
}

// Encode returns the file's content. The same File always has the same.
func (f File) Encode() ([]byte, error) {
	raw, err := json.MarshalIndent(f, "", "  ")
	return append(raw, '\n'), err
}

// Write replaces the file at path by content in one step, with mode perm.
func Write(path string, content []byte, perm os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err := errors.Join(err, f.Chmod(perm), f.Close()); err != nil {
		os.Remove(f.Name())
		return err
	}
	return os.Rename(f.Name(), path)
}
