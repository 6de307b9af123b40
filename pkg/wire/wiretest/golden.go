// Package wiretest checks messages against bytes that were written by hand.
//
//	0a 06                 # 1 name: 6 bytes
//	  63 61 72 74 2d 31   # "cart-1"
//
// A golden file is hexadecimal bytes; blanks do not matter and a '#' starts a
// comment that runs to the end of its line.
package wiretest

import (
	"bytes"
	"encoding/hex"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"
)

// Bytes reads a golden file.
func Bytes(t testing.TB, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var digits strings.Builder
	for line := range strings.Lines(string(text)) {
		line, _, _ = strings.Cut(line, "#")
		digits.WriteString(strings.Join(strings.Fields(line), ""))
	}
	b, err := hex.DecodeString(digits.String())
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return b
}

// Golden checks that the file decodes to exactly want, and want encodes to exactly
// the file.
func Golden(t *testing.T, path string, want proto.Message) {
	t.Helper()
	b := Bytes(t, path)
	got := want.ProtoReflect().New().Interface()
	if err := proto.Unmarshal(b, got); err != nil {
		t.Errorf("%s: %v", path, err)
		return
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("%s decodes to something else (-want +got):\n%s", path, diff)
	}
	out, err := proto.MarshalOptions{Deterministic: true}.Marshal(want)
	if err != nil {
		t.Errorf("%s: %v", path, err)
		return
	}
	if !bytes.Equal(out, b) {
		t.Errorf("%s encodes to something else (-want +got):\n%s", path, cmp.Diff(hex.Dump(b), hex.Dump(out)))
	}
}

// Covers checks that the messages together set every field of every message type
// of the file, so that no field number goes unchecked.
func Covers(t *testing.T, file protoreflect.FileDescriptor, messages ...proto.Message) {
	t.Helper()
	seen := make(map[protoreflect.FullName]bool)
	for _, m := range messages {
		mark(m.ProtoReflect(), seen)
	}
	unmarked(t, file.Messages(), seen)
}

func mark(m protoreflect.Message, seen map[protoreflect.FullName]bool) {
	seen[m.Descriptor().FullName()] = true
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		seen[f.FullName()] = true
		switch {
		case f.IsMap() && f.MapValue().Message() != nil:
			v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
				mark(v.Message(), seen)
				return true
			})
		case f.IsList() && f.Message() != nil:
			for i := range v.List().Len() {
				mark(v.List().Get(i).Message(), seen)
			}
		case f.Message() != nil && !f.IsMap():
			mark(v.Message(), seen)
		}
		return true
	})
}

func unmarked(t *testing.T, messages protoreflect.MessageDescriptors, seen map[protoreflect.FullName]bool) {
	t.Helper()
	for i := range messages.Len() {
		m := messages.Get(i)
		if m.IsMapEntry() {
			continue
		}
		if !seen[m.FullName()] {
			t.Errorf("no golden file has a %s", m.FullName())
		}
		for j := range m.Fields().Len() {
			if f := m.Fields().Get(j); !seen[f.FullName()] {
				t.Errorf("no golden file sets %s", f.FullName())
			}
		}
		unmarked(t, m.Messages(), seen)
	}
}
