package folder

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/culvert-mesh/culvert/pkg/reason"
)

// Key is an object's name in a set. The version of its API is no part of it:
// two versions of one object are one object.
type Key struct {
	Group     string // "" for the core group
	Kind      string
	Namespace string // "" for kinds that have none
	Name      string
}

// String returns "Kind/namespace/name", or "Kind/name" without a namespace.
func (k Key) String() string {
	if k.Namespace == "" {
		return k.Kind + "/" + k.Name
	}
	return k.Kind + "/" + k.Namespace + "/" + k.Name
}

// Compare orders keys by kind, namespace, name and group.
func (k Key) Compare(o Key) int {
	return cmp.Or(cmp.Compare(k.Kind, o.Kind), cmp.Compare(k.Namespace, o.Namespace),
		cmp.Compare(k.Name, o.Name), cmp.Compare(k.Group, o.Group))
}

// Object is one Kubernetes-style object, after merging.
type Object struct {
	APIVersion string
	Kind       string
	Namespace  string
	Name       string
	Node       *yaml.Node // the whole object, a mapping; read only, without aliases
	File       string     // the file that created it
	Line       int        // where it begins in File, from 1

	files map[*yaml.Node]string // values that came from another file than File
}

// Key returns the object's key.
func (o *Object) Key() Key {
	group, _, ok := strings.Cut(o.APIVersion, "/")
	if !ok {
		group = ""
	}
	return Key{group, o.Kind, o.Namespace, o.Name}
}

// Decode decodes the object into v by its yaml tags, leniently.
func (o *Object) Decode(v any) error {
	if err := o.Node.Decode(v); err != nil {
		return fmt.Errorf("decode %s: %w", o.Key(), err)
	}
	return nil
}

// JSON returns the object as JSON, for decoders that know JSON only.
func (o *Object) JSON() ([]byte, error) {
	v, err := value(o.Node)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", o.Key(), err)
	}
	return json.Marshal(v)
}

// Locate returns where the value at path was written. path is a dotted field
// path with indexes, "spec.rules[0].from"; the nearest enclosing value that
// exists is located when the path leads nowhere.
func (o *Object) Locate(path string) (file string, line int) {
	file, line = o.File, o.Line
	n := o.Node
	for _, step := range splitPath(path) {
		key, next := child(n, step)
		if next == nil {
			break
		}
		n, line = next, key.Line
		if f, ok := o.files[next]; ok {
			file = f
		}
	}
	return file, line
}

// Problem is one thing wrong with a file.
type Problem struct {
	File   string        `json:"file"`
	Line   int           `json:"line,omitempty"`   // from 1; 0 = the file as a whole
	Object string        `json:"object,omitempty"` // Key.String, when known
	Field  string        `json:"field,omitempty"`  // "spec.ports[0].port", when known
	Reason reason.Reason `json:"reason"`
	Detail string        `json:"detail,omitempty"`
}

// String returns "file:line: object field: reason: detail".
func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		b.WriteString(":" + strconv.Itoa(p.Line))
	}
	b.WriteString(": ")
	if p.Object != "" {
		b.WriteString(p.Object + " ")
	}
	if p.Field != "" {
		b.WriteString(p.Field + " ")
	}
	s := strings.TrimSuffix(b.String(), " ")
	if !strings.HasSuffix(s, ":") {
		s += ":"
	}
	s += " " + string(p.Reason)
	if p.Detail != "" {
		s += ": " + p.Detail
	}
	return s
}

// splitPath splits "a.b[0].c" into a, b, [0], c. Keys with dots are written
// ["key.with.dots"].
func splitPath(path string) []string {
	var steps []string
	for path != "" {
		switch {
		case path[0] == '.':
			path = path[1:]
		case strings.HasPrefix(path, `["`):
			end := strings.Index(path, `"]`)
			if end < 2 {
				return steps
			}
			steps = append(steps, path[2:end])
			path = path[end+2:]
		case path[0] == '[':
			end := strings.IndexByte(path, ']')
			if end < 0 {
				return steps
			}
			steps = append(steps, path[:end+1])
			path = path[end+1:]
		default:
			end := strings.IndexAny(path, ".[")
			if end < 0 {
				end = len(path)
			}
			steps = append(steps, path[:end])
			path = path[end:]
		}
	}
	return steps
}

// child returns the key and value nodes that step leads to; for a list item
// both are the item.
func child(n *yaml.Node, step string) (key, val *yaml.Node) {
	if strings.HasPrefix(step, "[") && n.Kind == yaml.SequenceNode {
		i, err := strconv.Atoi(strings.Trim(step, "[]"))
		if err != nil || i < 0 || i >= len(n.Content) {
			return nil, nil
		}
		return n.Content[i], n.Content[i]
	}
	if n.Kind != yaml.MappingNode {
		return nil, nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == step {
			return n.Content[i], n.Content[i+1]
		}
	}
	return nil, nil
}
