package localxds

import (
	"fmt"
	"net/netip"
	"slices"

	"go.yaml.in/yaml/v3"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// fields is a mapping whose keys are known. The first failure is kept in err and
// makes all further gets do nothing.
type fields struct {
	node *yaml.Node
	by   map[string]*yaml.Node
	err  error
}

// open checks a mapping: all required keys are there, no unknown and no double ones.
func open(n *yaml.Node, required []string, optional ...string) (*fields, error) {
	f, err := openAny(n)
	if err != nil {
		return nil, err
	}
	for i := 0; i < len(f.node.Content); i += 2 {
		if key := f.node.Content[i]; !slices.Contains(required, key.Value) && !slices.Contains(optional, key.Value) {
			return nil, fmt.Errorf("line %d: unknown key %q", key.Line, key.Value)
		}
	}
	for _, key := range required {
		if f.by[key] == nil {
			return nil, fmt.Errorf("line %d: key %q is missing", n.Line, key)
		}
	}
	return f, nil
}

// openAny is open without knowledge of the keys.
func openAny(n *yaml.Node) (*fields, error) {
	n = resolve(n)
	if n.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("line %d: want a mapping", n.Line)
	}
	f := &fields{node: n, by: make(map[string]*yaml.Node, len(n.Content)/2)}
	for i := 0; i < len(n.Content); i += 2 {
		key := n.Content[i]
		if f.by[key.Value] != nil {
			return nil, fmt.Errorf("line %d: key %q comes twice", key.Line, key.Value)
		}
		f.by[key.Value] = n.Content[i+1]
	}
	return f, nil
}

// resolve follows aliases.
func resolve(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}

// has reports whether the key is there and not null.
func (f *fields) has(key string) bool {
	n := f.by[key]
	return n != nil && resolve(n).ShortTag() != "!!null"
}

// get decodes a key's value; an absent one leaves out as it is.
func (f *fields) get(key string, out any) {
	if f.err != nil || !f.has(key) {
		return
	}
	n := f.by[key]
	if err := n.Decode(out); err != nil {
		f.fail(key, "%w", err)
	}
}

// fail records an error about a key.
func (f *fields) fail(key, format string, args ...any) {
	if f.err == nil {
		f.err = fmt.Errorf("line %d: %s: %w", f.by[key].Line, key, fmt.Errorf(format, args...))
	}
}

// sub hands a key's value to a parser.
func sub[T any](f *fields, key string, out *T, parse func(*yaml.Node) (T, error)) {
	if f.err != nil || !f.has(key) {
		return
	}
	v, err := parse(f.by[key])
	if err != nil {
		f.err = fmt.Errorf("%s: %w", key, err)
		return
	}
	*out = v
}

// all hands each item of a key's list to a parser.
func all[T any](f *fields, key string, parse func(*yaml.Node) (T, error)) (out []T) {
	var items list
	f.get(key, &items)
	if f.err != nil || len(items) == 0 {
		return nil
	}
	out, err := each(items, key, parse)
	if err != nil {
		f.err = err
	}
	return out
}

// enum decodes one of the named values.
func enum[T any](f *fields, key string, out *T, values map[string]T) {
	var s string
	f.get(key, &s)
	if f.err != nil || !f.has(key) {
		return
	}
	v, ok := values[s]
	if !ok {
		f.fail(key, "unknown value %q", s)
		return
	}
	*out = v
}

func address(n *yaml.Node) (netip.Addr, error) {
	a, err := netip.ParseAddr(resolve(n).Value)
	if err != nil {
		return a, fmt.Errorf("line %d: %w", n.Line, err)
	}
	return a.Unmap(), nil
}

func netAddress(n *yaml.Node) (mesh.NetAddr, error) {
	a, err := mesh.ParseNetAddr(resolve(n).Value)
	if err != nil {
		return a, fmt.Errorf("line %d: %w", n.Line, err)
	}
	return a, nil
}

func policyName(n *yaml.Node) (mesh.PolicyName, error) {
	p, err := mesh.ParsePolicyName(resolve(n).Value)
	if err != nil {
		return p, fmt.Errorf("line %d: %w", n.Line, err)
	}
	return p, nil
}

// ports decodes {service port: target port}, ascending.
func ports(n *yaml.Node) ([]mesh.Port, error) {
	var m map[uint16]uint16
	if err := n.Decode(&m); err != nil {
		return nil, err
	}
	var out []mesh.Port
	for service, target := range m {
		out = append(out, mesh.Port{Service: service, Target: target})
	}
	slices.SortFunc(out, func(a, b mesh.Port) int { return int(a.Service) - int(b.Service) })
	return out, nil
}
