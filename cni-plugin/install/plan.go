package install

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// File is one file of the runtime's configuration folder.
type File struct {
	Name    string // without its folder
	Content []byte
}

// Change is one step of a plan. Steps are carried out in order.
type Change struct {
	Write  File   // a file to put in place, when its name is not empty
	Rename string // a file to move to To, when not empty
	To     string
	Remove string // a file to delete, when not empty
}

func (c Change) String() string {
	switch {
	case c.Write.Name != "":
		return "write " + c.Write.Name
	case c.Rename != "":
		return "rename " + c.Rename + " to " + c.To
	}
	return "remove " + c.Remove
}

// Options say where the plugin goes.
type Options struct {
	// Entry is the plugin's entry in a list of plugins: an object with "type".
	Entry json.RawMessage
	// Own is the name of a configuration file of our own, such as
	// "02-culvert.conflist": a copy of the cluster's, with our entry at its end. It
	// must come before the cluster's in the order of names. "" puts the entry into
	// the cluster's own file.
	Own string
	// Only names the cluster's file; "" is the first one that the runtime would
	// take.
	Only string
}

// ErrNoNetwork is that the cluster has no network configuration (yet).
var ErrNoNetwork = errors.New("no CNI configuration to be chained to")

// savedSuffix marks what a plain configuration was before it became a list. A
// runtime does not read files with such an ending.
const savedSuffix = ".culvert-saved"

// Install returns what has to change so that the runtime calls the plugin last of
// all: nothing, when all is as it should be. It looks at the files as the runtime
// does: in the order of names, and the first valid one counts.
func Install(files []File, o Options) ([]Change, error) {
	kind, err := typeOf(o.Entry)
	if err != nil {
		return nil, fmt.Errorf("our own entry: %w", err)
	}
	base, list, err := cluster(files, o)
	if err != nil {
		return nil, err
	}
	list.remove(kind)
	list.plugins = append(list.plugins, o.Entry)
	content, err := list.encode()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", base.Name, err)
	}
	target := o.Own
	if target == "" {
		target = listName(base.Name)
	}
	if o.Own != "" && o.Own >= base.Name {
		return nil, fmt.Errorf("%s would come after %s and never be read", o.Own, base.Name)
	}
	var plan []Change
	if !unchanged(files, target, content) {
		plan = append(plan, Change{Write: File{target, content}})
	}
	if target != base.Name && o.Own == "" {
		plan = append(plan, Change{Rename: base.Name, To: base.Name + savedSuffix})
	}
	return plan, nil
}

// Uninstall returns what has to change so that the runtime does not know of the
// plugin, and the cluster's configuration is as it would be without it.
func Uninstall(files []File, o Options) ([]Change, error) {
	kind, err := typeOf(o.Entry)
	if err != nil {
		return nil, fmt.Errorf("our own entry: %w", err)
	}
	var plan []Change
	for _, f := range sorted(files) {
		if f.Name == o.Own {
			plan = append(plan, Change{Remove: f.Name})
			continue
		}
		list, err := parse(f)
		if err != nil || !list.remove(kind) {
			continue
		}
		if original := strings.TrimSuffix(f.Name, "list"); find(files, original+savedSuffix) != nil {
			plan = append(plan, Change{Rename: original + savedSuffix, To: original}, Change{Remove: f.Name})
			continue
		}
		content, err := list.encode()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name, err)
		}
		plan = append(plan, Change{Write: File{f.Name, content}})
	}
	return plan, nil
}

// cluster returns the cluster's configuration: the first file that is one, is not
// ours, and has other plugins than ours.
func cluster(files []File, o Options) (File, *confList, error) {
	var broken []error
	for _, f := range sorted(files) {
		if f.Name == o.Own || o.Only != "" && f.Name != o.Only && f.Name != listName(o.Only) {
			continue
		}
		list, err := parse(f)
		if err != nil {
			broken = append(broken, fmt.Errorf("%s: %w", f.Name, err))
			continue
		}
		return f, list, nil
	}
	if o.Only != "" {
		return File{}, nil, errors.Join(append(broken, fmt.Errorf("%w: there is no valid %s", ErrNoNetwork, o.Only))...)
	}
	return File{}, nil, errors.Join(append(broken, ErrNoNetwork)...)
}

// sorted returns the files that a runtime reads, in its order.
func sorted(files []File) []File {
	var out []File
	for _, f := range files {
		switch filepath.Ext(f.Name) {
		case ".conf", ".conflist", ".json":
			out = append(out, f)
		}
	}
	slices.SortFunc(out, func(a, b File) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func find(files []File, name string) *File {
	for i := range files {
		if files[i].Name == name {
			return &files[i]
		}
	}
	return nil
}

func unchanged(files []File, name string, content []byte) bool {
	f := find(files, name)
	return f != nil && bytes.Equal(f.Content, content)
}

// listName is the name of the list that a file's configuration is kept in.
func listName(name string) string {
	if filepath.Ext(name) == ".conflist" {
		return name
	}
	return strings.TrimSuffix(name, filepath.Ext(name)) + ".conflist"
}

// confList is a network configuration: a list of plugins, and the rest of the
// document as it is.
type confList struct {
	rest    map[string]json.RawMessage
	plugins []json.RawMessage
}

// parse reads a list, or a plain configuration as a list of one.
func parse(f File) (*confList, error) {
	var rest map[string]json.RawMessage
	if err := json.Unmarshal(f.Content, &rest); err != nil {
		return nil, err
	}
	var name string
	if err := json.Unmarshal(rest["name"], &name); err != nil || name == "" {
		return nil, errors.New("it has no name")
	}
	if filepath.Ext(f.Name) != ".conflist" {
		if _, err := typeOf(f.Content); err != nil {
			return nil, err
		}
		return listOf(rest)
	}
	l := &confList{rest: rest}
	if err := json.Unmarshal(rest["plugins"], &l.plugins); err != nil || len(l.plugins) == 0 {
		return nil, errors.New("it has no plugins")
	}
	for i, p := range l.plugins {
		if _, err := typeOf(p); err != nil {
			return nil, fmt.Errorf("plugins[%d]: %w", i, err)
		}
	}
	return l, nil
}

// listOf turns a plain configuration into a list: its name and version are the
// list's.
func listOf(conf map[string]json.RawMessage) (*confList, error) {
	l := &confList{rest: map[string]json.RawMessage{}}
	for _, key := range []string{"name", "cniVersion"} {
		if v, ok := conf[key]; ok {
			l.rest[key] = v
			delete(conf, key)
		}
	}
	only, err := json.Marshal(conf)
	l.plugins = []json.RawMessage{only}
	return l, err
}

// typeOf returns a plugin entry's type.
func typeOf(entry json.RawMessage) (string, error) {
	var p struct{ Type string }
	if err := json.Unmarshal(entry, &p); err != nil {
		return "", err
	}
	if p.Type == "" {
		return "", errors.New("a plugin without a type")
	}
	return p.Type, nil
}

// remove takes the plugins of a type out, and reports whether there were any.
func (l *confList) remove(kind string) bool {
	n := len(l.plugins)
	l.plugins = slices.DeleteFunc(l.plugins, func(p json.RawMessage) bool {
		k, _ := typeOf(p)
		return k == kind
	})
	return len(l.plugins) < n
}

// encode returns the document. Equal lists have equal documents.
func (l *confList) encode() ([]byte, error) {
	plugins, err := json.Marshal(l.plugins)
	if err != nil {
		return nil, err
	}
	l.rest["plugins"] = plugins
	raw, err := json.MarshalIndent(l.rest, "", "  ")
	return append(raw, '\n'), err
}
