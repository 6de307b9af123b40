package install

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/pkg/golden"
)

var entry = json.RawMessage(`{"type": "culvert-cni", "agentSocket": "/run/agent.sock"}`)

// Each case is a folder and what installing makes of it. Whatever was installed is
// found to be so, and uninstalling leaves what was there before.
func TestPlan(t *testing.T) {
	t.Parallel()
	golden.Cases(t, "testdata/*.txtar", func(t *testing.T, c *golden.Case) {
		o := Options{Entry: entry}
		var before []File
		for _, f := range c.Files() {
			if name, ok := strings.CutPrefix(f.Name, "folder/"); ok {
				before = append(before, File{name, f.Data})
			}
			if f.Name == "options" {
				if err := json.Unmarshal(f.Data, &o); err != nil {
					t.Fatal(err)
				}
			}
		}
		plan, err := Install(before, o)
		var out bytes.Buffer
		if err != nil {
			fmt.Fprintln(&out, "error:", err)
		}
		for _, change := range plan {
			fmt.Fprintln(&out, change)
			out.Write(change.Write.Content)
		}
		c.Want(t, "want", out.String())
		if err == nil {
			roundTrip(t, before, plan, o)
		}
	})
}

func roundTrip(t *testing.T, before []File, plan []Change, o Options) {
	t.Helper()
	installed := after(before, plan)
	if again, err := Install(installed, o); err != nil || len(again) > 0 {
		t.Errorf("installed twice: %v, %v", again, err)
	}
	plan, err := Uninstall(installed, o)
	if err != nil {
		t.Fatal(err)
	}
	left, _ := Uninstall(before, o)
	if got, want := documents(t, after(installed, plan)), documents(t, after(before, left)); !reflect.DeepEqual(got, want) {
		t.Errorf("after uninstalling %v, before installing %v", got, want)
	}
}

// after is what a folder holds when the changes are made.
func after(files []File, changes []Change) []File {
	m := map[string][]byte{}
	for _, f := range files {
		m[f.Name] = f.Content
	}
	for _, c := range changes {
		switch {
		case c.Write.Name != "":
			m[c.Write.Name] = c.Write.Content
		case c.Rename != "":
			m[c.To] = m[c.Rename]
			delete(m, c.Rename)
		default:
			delete(m, c.Remove)
		}
	}
	var out []File
	for name, content := range m {
		out = append(out, File{name, content})
	}
	return out
}

// documents is what the files mean, as far as they mean anything.
func documents(t *testing.T, files []File) map[string]any {
	t.Helper()
	m := map[string]any{}
	for _, f := range files {
		var v any
		if json.Unmarshal(f.Content, &v) != nil {
			v = string(f.Content)
		}
		m[f.Name] = v
	}
	return m
}

func TestNoNetwork(t *testing.T) {
	t.Parallel()
	if _, err := Install(nil, Options{Entry: entry}); !errors.Is(err, ErrNoNetwork) {
		t.Errorf("an empty folder: %v", err)
	}
	if _, err := Install(nil, Options{Entry: json.RawMessage(`{}`)}); err == nil || errors.Is(err, ErrNoNetwork) {
		t.Errorf("an entry without a type: %v", err)
	}
}
