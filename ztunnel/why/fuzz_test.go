package why

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
)

// FuzzQuestion: whatever is asked, there is an answer, and a refusal has a reason.
func FuzzQuestion(f *testing.F) {
	text, err := os.ReadFile("testdata/leaving.txtar")
	if err != nil {
		f.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "-- mesh.yaml --\n")
	known, _, _ := strings.Cut(rest, "-- questions --")
	for _, q := range []string{
		`{"pod":{"namespace":"shop","name":"a","serviceAccount":"a"},"dst":"10.96.0.7:80"}`,
		`{"pod":{"namespace":"shop","name":"a","serviceAccount":"a"},"dst":"[::ffff:10.96.0.10]:80"}`,
		`{"pod":{"namespace":"shop","name":"w","serviceAccount":"w"},"waypoint":true,"dst":"10.96.0.10:80"}`,
		`{"pod":{"namespace":"shop","name":"a","serviceAccount":"a"},"arriving":{"source":"10.0.0.2","dst":"10.0.0.1:15008","authority":"10.0.0.1:80","identity":"spiffe://td/ns/x/sa/y"}}`,
		`{"pod":{"namespace":"shop","name":"a","serviceAccount":"a"},"arriving":{"source":"","dst":"10.0.0.1:80","authority":"b.shop:80"}}`,
	} {
		f.Add(q)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var q Question
		if json.Unmarshal([]byte(text), &q) != nil {
			return
		}
		a := newNode(t, []byte(known)).Explain(t.Context(), q)
		if a.Allowed != (a.Reason == "") || a.Allowed != (a.Error == "") || len(a.Steps) == 0 {
			t.Errorf("%s: %+v", text, a)
		}
	})
}
