package folder

import (
	"encoding/json"
	"fmt"
	"strconv"

	"go.yaml.in/yaml/v3"
)

// value returns the plain Go value of a tree without aliases.
func value(n *yaml.Node) (any, error) {
	switch n.Kind {
	case yaml.MappingNode:
		m := make(map[string]any, len(n.Content)/2)
		for i := 0; i+1 < len(n.Content); i += 2 {
			v, err := value(n.Content[i+1])
			if err != nil {
				return nil, err
			}
			m[n.Content[i].Value] = v
		}
		return m, nil
	case yaml.SequenceNode:
		s := make([]any, len(n.Content))
		for i, c := range n.Content {
			v, err := value(c)
			if err != nil {
				return nil, err
			}
			s[i] = v
		}
		return s, nil
	case yaml.ScalarNode:
		return scalar(n)
	}
	return nil, fmt.Errorf("line %d: not a plain value", n.Line)
}

func scalar(n *yaml.Node) (any, error) {
	switch n.ShortTag() {
	case "!!null":
		return nil, nil
	case "!!bool":
		var b bool
		if err := n.Decode(&b); err != nil {
			return nil, fmt.Errorf("line %d: %w", n.Line, err)
		}
		return b, nil
	case "!!int":
		return integer(n)
	case "!!float":
		return float(n)
	}
	return n.Value, nil // strings, and timestamps as they were written
}

func integer(n *yaml.Node) (any, error) {
	var i int64
	if err := n.Decode(&i); err == nil {
		return i, nil
	}
	var u uint64
	if err := n.Decode(&u); err == nil {
		return u, nil
	}
	return float(n)
}

func float(n *yaml.Node) (any, error) {
	var f float64
	if err := n.Decode(&f); err != nil {
		return nil, fmt.Errorf("line %d: %w", n.Line, err)
	}
	s := strconv.FormatFloat(f, 'g', -1, 64)
	if !json.Valid([]byte(s)) {
		return nil, fmt.Errorf("line %d: %s is not a JSON number", n.Line, n.Value)
	}
	return json.Number(s), nil
}

// merger merges patches into one object. The trees it is given stay unchanged.
type merger struct {
	files map[*yaml.Node]string // values that a patch brought, and its file
}

// merge returns base with patch applied (RFC 7396): mappings are merged, null
// removes, everything else replaces.
func (m *merger) merge(base, patch *yaml.Node, file string) *yaml.Node {
	if patch.Kind != yaml.MappingNode {
		m.files[patch] = file
		return patch
	}
	out := *patch
	out.Content = nil
	if base != nil && base.Kind == yaml.MappingNode {
		out = *base
		out.Content = append([]*yaml.Node(nil), base.Content...)
	} else {
		m.files[&out] = file
	}
	for i := 0; i+1 < len(patch.Content); i += 2 {
		m.set(&out, patch.Content[i], patch.Content[i+1], file)
	}
	return &out
}

func (m *merger) set(out, key, val *yaml.Node, file string) {
	for i := 0; i+1 < len(out.Content); i += 2 {
		if out.Content[i].Value != key.Value {
			continue
		}
		if isNull(val) {
			out.Content = append(out.Content[:i], out.Content[i+2:]...)
			return
		}
		merged := m.merge(out.Content[i+1], val, file)
		if val.Kind != yaml.MappingNode {
			out.Content[i] = key // the line that is now in force
		}
		out.Content[i+1] = merged
		return
	}
	if !isNull(val) {
		out.Content = append(out.Content, key, m.merge(nil, val, file))
	}
}

// equal reports whether two trees hold the same values in the same lines.
func equal(a, b *yaml.Node) bool {
	if a == b {
		return true
	}
	if a.Kind != b.Kind || a.Line != b.Line || len(a.Content) != len(b.Content) {
		return false
	}
	if a.Kind == yaml.ScalarNode && (a.Value != b.Value || a.ShortTag() != b.ShortTag()) {
		return false
	}
	for i := range a.Content {
		if !equal(a.Content[i], b.Content[i]) {
			return false
		}
	}
	return true
}
