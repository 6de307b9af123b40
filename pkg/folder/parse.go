package folder

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/culvert-mesh/culvert/pkg/reason"
)

// Parse reads the objects of one file's content. name is used in what it
// returns. Either every document is good, or the problems say what is not and
// the objects are nil: half a file is never taken.
func Parse(name string, content []byte) ([]*Object, []Problem) {
	if len(content) > MaxFileSize {
		return nil, []Problem{{File: name, Reason: reason.InvalidValue, Detail: fmt.Sprintf("file is larger than %d bytes", MaxFileSize)}}
	}
	p := &parser{file: name, budget: MaxNodes}
	p.documents(content)
	if len(p.problems) > 0 {
		return nil, p.problems
	}
	return p.objects, nil
}

type parser struct {
	file     string
	budget   int
	objects  []*Object
	problems []Problem
}

func (p *parser) fail(line int, r reason.Reason, field, format string, args ...any) {
	p.problems = append(p.problems, Problem{File: p.file, Line: line, Field: field, Reason: r, Detail: fmt.Sprintf(format, args...)})
}

func (p *parser) documents(content []byte) {
	dec := yaml.NewDecoder(bytes.NewReader(content))
	for {
		var doc yaml.Node
		err := dec.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			line, text := yamlError(err)
			p.fail(line, reason.MalformedYAML, "", "%s", text)
			return
		}
		if len(doc.Content) == 0 || isNull(doc.Content[0]) {
			continue
		}
		root, err := p.expand(doc.Content[0], 0)
		if err != nil {
			var e *treeError
			errors.As(err, &e)
			p.fail(e.line, reason.MalformedYAML, "", "%s", e.text)
			return
		}
		p.object(root)
	}
}

// yamlLine finds the line in the text of a YAML error.
var yamlLine = regexp.MustCompile(`^(?:yaml: )?(?:unmarshal errors:\s*)?(?:line (\d+): )?`)

func yamlError(err error) (line int, text string) {
	s := err.Error()
	m := yamlLine.FindStringSubmatch(s)
	line, _ = strconv.Atoi(m[1])
	return line, s[len(m[0]):]
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// object takes one document: an object, or a List of objects.
func (p *parser) object(n *yaml.Node) {
	if n.Kind != yaml.MappingNode {
		p.fail(n.Line, reason.MalformedYAML, "", "a document must be an object with apiVersion, kind and metadata")
		return
	}
	o := &Object{Node: n, File: p.file, Line: n.Line}
	o.APIVersion = p.text(n, "apiVersion", "apiVersion", true)
	o.Kind = p.text(n, "kind", "kind", true)
	if o.APIVersion == "" || o.Kind == "" {
		return
	}
	if _, items := child(n, "items"); items != nil && strings.HasSuffix(o.Kind, "List") {
		p.list(items)
		return
	}
	_, meta := child(n, "metadata")
	if meta == nil || meta.Kind != yaml.MappingNode {
		p.fail(n.Line, reason.MissingField, "metadata", "%s has no metadata", o.Kind)
		return
	}
	o.Name = p.text(meta, "name", "metadata.name", true)
	o.Namespace = p.text(meta, "namespace", "metadata.namespace", false)
	if o.Name == "" {
		return
	}
	switch {
	case ClusterScoped(o.Kind):
		o.Namespace = ""
	case o.Namespace == "":
		o.Namespace = "default"
	}
	p.objects = append(p.objects, o)
}

func (p *parser) list(items *yaml.Node) {
	if items.Kind != yaml.SequenceNode {
		p.fail(items.Line, reason.InvalidValue, "items", "must be a list")
		return
	}
	for _, item := range items.Content {
		p.object(item)
	}
}

// text returns the string at key and reports one that is missing or no string.
func (p *parser) text(n *yaml.Node, key, field string, required bool) string {
	k, v := child(n, key)
	if v == nil || isNull(v) {
		if required {
			p.fail(n.Line, reason.MissingField, field, "")
		}
		return ""
	}
	if v.Kind != yaml.ScalarNode || v.ShortTag() != "!!str" {
		p.fail(k.Line, reason.InvalidValue, field, "must be a string")
		return ""
	}
	if v.Value == "" && required {
		p.fail(k.Line, reason.MissingField, field, "must not be empty")
	}
	return v.Value
}

// ClusterScoped reports whether objects of that kind have no namespace.
func ClusterScoped(kind string) bool {
	switch kind {
	case "Namespace", "Node", "GatewayClass", "PersistentVolume", "StorageClass", "ClusterRole", "ClusterRoleBinding",
		"CustomResourceDefinition", "PriorityClass", "IngressClass", "RuntimeClass",
		"MutatingWebhookConfiguration", "ValidatingWebhookConfiguration", "APIService":
		return true
	}
	return false
}

// treeError is a document that is YAML but no tree of plain values.
type treeError struct {
	line int
	text string
}

func (e *treeError) Error() string { return fmt.Sprintf("line %d: %s", e.line, e.text) }

// expand returns n with its aliases and merge keys replaced by what they mean.
// Every use of an anchor counts against the budget, so a small file cannot grow
// into a large tree; an anchor inside itself ends at MaxDepth.
func (p *parser) expand(n *yaml.Node, depth int) (*yaml.Node, error) {
	if p.budget--; p.budget < 0 {
		return nil, &treeError{n.Line, fmt.Sprintf("more than %d values, counting each use of an anchor", MaxNodes)}
	}
	if depth > MaxDepth {
		return nil, &treeError{n.Line, fmt.Sprintf("nested deeper than %d", MaxDepth)}
	}
	switch n.Kind {
	case yaml.AliasNode:
		return p.expand(n.Alias, depth+1)
	case yaml.ScalarNode:
		return n, nil
	case yaml.MappingNode:
		return p.expandMapping(n, depth)
	}
	out := *n
	out.Content = make([]*yaml.Node, len(n.Content))
	for i, c := range n.Content {
		e, err := p.expand(c, depth+1)
		if err != nil {
			return nil, err
		}
		out.Content[i] = e
	}
	return &out, nil
}

func (p *parser) expandMapping(n *yaml.Node, depth int) (*yaml.Node, error) {
	out := *n
	out.Content = make([]*yaml.Node, 0, len(n.Content))
	seen := make(map[string]bool, len(n.Content)/2)
	var merged []*yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		if key.Kind == yaml.AliasNode {
			key = key.Alias
		}
		if key.Kind != yaml.ScalarNode {
			return nil, &treeError{key.Line, "a key must be a plain value"}
		}
		val, err := p.expand(n.Content[i+1], depth+1)
		if err != nil {
			return nil, err
		}
		if key.ShortTag() == "!!merge" {
			merged = append(merged, val)
			continue
		}
		if seen[key.Value] {
			return nil, &treeError{key.Line, fmt.Sprintf("key %q is given twice", key.Value)}
		}
		seen[key.Value] = true
		out.Content = append(out.Content, key, val)
	}
	for _, m := range merged {
		if err := p.mergeKey(&out, m, seen); err != nil {
			return nil, err
		}
	}
	return &out, nil
}

// mergeKey adds what `<<: m` brings and the mapping does not have itself.
func (p *parser) mergeKey(out, m *yaml.Node, seen map[string]bool) error {
	switch m.Kind {
	case yaml.SequenceNode:
		for _, item := range m.Content {
			if err := p.mergeKey(out, item, seen); err != nil {
				return err
			}
		}
		return nil
	case yaml.MappingNode:
		for i := 0; i+1 < len(m.Content); i += 2 {
			if k := m.Content[i]; !seen[k.Value] {
				seen[k.Value] = true
				out.Content = append(out.Content, k, m.Content[i+1])
			}
		}
		return nil
	}
	return &treeError{m.Line, "a merge key needs a mapping"}
}
