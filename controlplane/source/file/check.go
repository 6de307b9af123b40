package file

import (
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// fault is one field that does not fit its type.
type fault struct {
	field   string
	unknown bool
	text    string
}

// checker compares a YAML tree with a type and says exactly which field does not
// fit. Decoders stop at the first error and know no list indexes; this one finds
// all of them.
type checker struct{ faults []fault }

func (c *checker) fail(field, format string, args ...any) {
	c.faults = append(c.faults, fault{field: field, text: fmt.Sprintf(format, args...)})
}

func (c *checker) unknown(field string) {
	c.faults = append(c.faults, fault{field: field, unknown: true})
}

func join(path, key string) string {
	if strings.ContainsAny(key, ".[]\"") {
		return path + `["` + key + `"]`
	}
	if path == "" {
		return key
	}
	return path + "." + key
}

func index(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

func null(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

var (
	jsonUnmarshaler = reflect.TypeFor[json.Unmarshaler]()
	textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// goType checks n against a Go type, as encoding/json would fill it.
func (c *checker) goType(n *yaml.Node, t reflect.Type, path string) {
	if null(n) {
		return
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if p := reflect.PointerTo(t); p.Implements(jsonUnmarshaler) || p.Implements(textUnmarshaler) {
		c.custom(n, t, path)
		return
	}
	switch t.Kind() {
	case reflect.Struct:
		c.goStruct(n, t, path)
	case reflect.Map:
		if c.kind(n, yaml.MappingNode, path, "a mapping") {
			for i := 0; i+1 < len(n.Content); i += 2 {
				c.goType(n.Content[i+1], t.Elem(), join(path, n.Content[i].Value))
			}
		}
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			c.tag(n, path, "a string", "!!str", "!!binary")
			return
		}
		if c.kind(n, yaml.SequenceNode, path, "a list") {
			for i, item := range n.Content {
				c.goType(item, t.Elem(), index(path, i))
			}
		}
	default:
		c.goScalar(n, t, path)
	}
}

func (c *checker) goStruct(n *yaml.Node, t reflect.Type, path string) {
	if !c.kind(n, yaml.MappingNode, path, "a mapping") {
		return
	}
	fields := jsonFields(t)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i].Value
		f, ok := fields[key]
		if !ok {
			c.unknown(join(path, key))
			continue
		}
		c.goType(n.Content[i+1], f, join(path, key))
	}
}

// jsonFields returns the types of a struct's fields by their JSON names.
func jsonFields(t reflect.Type) map[string]reflect.Type {
	fields := map[string]reflect.Type{}
	for f := range t.Fields() {
		name, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous && (name == "" || strings.Contains(opts, "inline")) {
			for n, ft := range jsonFields(f.Type) {
				fields[n] = ft
			}
			continue
		}
		if name != "" && name != "-" {
			fields[name] = f.Type
		}
	}
	return fields
}

func (c *checker) goScalar(n *yaml.Node, t reflect.Type, path string) {
	switch t.Kind() {
	case reflect.String:
		c.tag(n, path, "a string", "!!str", "!!timestamp", "!!binary")
	case reflect.Bool:
		c.tag(n, path, "true or false", "!!bool")
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		if c.tag(n, path, "a whole number", "!!int") {
			if _, err := strconv.ParseInt(n.Value, 0, t.Bits()); err != nil {
				c.fail(path, "%s is out of range", n.Value)
			}
		}
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		if c.tag(n, path, "a whole number", "!!int") {
			if _, err := strconv.ParseUint(n.Value, 0, t.Bits()); err != nil {
				c.fail(path, "%s is out of range", n.Value)
			}
		}
	case reflect.Float32, reflect.Float64:
		c.tag(n, path, "a number", "!!int", "!!float")
	}
}

// custom checks a value that decodes itself.
func (c *checker) custom(n *yaml.Node, t reflect.Type, path string) {
	text, err := jsonText(n)
	if err == nil {
		err = json.Unmarshal(text, reflect.New(t).Interface())
	}
	if err != nil {
		c.fail(path, "%s", shorten(err.Error()))
	}
}

func shorten(s string) string { return strings.TrimPrefix(s, "json: ") }

// kind reports whether n is of that kind, and says so when not.
func (c *checker) kind(n *yaml.Node, k yaml.Kind, path, want string) bool {
	if n.Kind != k {
		c.fail(path, "must be %s, is %s", want, describe(n))
		return false
	}
	return true
}

func (c *checker) tag(n *yaml.Node, path, want string, tags ...string) bool {
	if n.Kind == yaml.ScalarNode {
		for _, t := range tags {
			if n.ShortTag() == t {
				return true
			}
		}
	}
	c.fail(path, "must be %s, is %s", want, describe(n))
	return false
}

func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	if n.ShortTag() == "!!str" {
		return strconv.Quote(n.Value)
	}
	return n.Value
}

// message checks n against a protobuf message, as protojson would fill it.
func (c *checker) message(n *yaml.Node, d protoreflect.MessageDescriptor, path string) {
	if null(n) || isWellKnown(d) {
		return
	}
	if !c.kind(n, yaml.MappingNode, path, "a mapping") {
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, val := n.Content[i].Value, n.Content[i+1]
		f := d.Fields().ByJSONName(key)
		if f == nil {
			f = d.Fields().ByTextName(key)
		}
		at := join(path, key)
		switch {
		case f == nil:
			c.unknown(at)
		case null(val):
		case f.IsMap():
			c.protoMap(val, f, at)
		case f.IsList():
			if c.kind(val, yaml.SequenceNode, at, "a list") {
				for j, item := range val.Content {
					c.protoField(item, f, index(at, j))
				}
			}
		default:
			c.protoField(val, f, at)
		}
	}
}

// isWellKnown reports whether a message has a JSON form of its own; protojson
// judges those.
func isWellKnown(d protoreflect.MessageDescriptor) bool {
	return d.ParentFile().Package() == "google.protobuf"
}

func (c *checker) protoMap(n *yaml.Node, f protoreflect.FieldDescriptor, path string) {
	if !c.kind(n, yaml.MappingNode, path, "a mapping") {
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, at := n.Content[i], join(path, n.Content[i].Value)
		if f.MapKey().Kind() == protoreflect.Uint32Kind {
			if _, err := strconv.ParseUint(key.Value, 10, 32); err != nil {
				c.fail(at, "key must be a number")
			}
		}
		c.protoField(n.Content[i+1], f.MapValue(), at)
	}
}

func (c *checker) protoField(n *yaml.Node, f protoreflect.FieldDescriptor, path string) {
	switch f.Kind() {
	case protoreflect.MessageKind, protoreflect.GroupKind:
		c.message(n, f.Message(), path)
	case protoreflect.EnumKind:
		c.enum(n, f.Enum(), path)
	case protoreflect.StringKind, protoreflect.BytesKind:
		c.tag(n, path, "a string", "!!str", "!!timestamp")
	case protoreflect.BoolKind:
		c.tag(n, path, "true or false", "!!bool")
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		c.tag(n, path, "a number", "!!int", "!!float")
	default:
		c.tag(n, path, "a whole number", "!!int")
	}
}

func (c *checker) enum(n *yaml.Node, e protoreflect.EnumDescriptor, path string) {
	if n.Kind == yaml.ScalarNode && e.Values().ByName(protoreflect.Name(n.Value)) != nil {
		return
	}
	var names []string
	for i := range e.Values().Len() {
		names = append(names, string(e.Values().Get(i).Name()))
	}
	c.fail(path, "must be one of %s, is %s", strings.Join(names, ", "), describe(n))
}
