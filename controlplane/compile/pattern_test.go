package compile

import (
	"regexp"
	"testing"
	"unicode/utf8"

	"github.com/culvert-mesh/culvert/controlplane/source"
)

func TestTemplates(t *testing.T) {
	t.Parallel()
	for template, paths := range map[string]map[string]bool{
		"/a/{*}/b":    {"/a/x/b": true, "/a//b": false, "/a/x/y/b": false, "/a/b": false},
		"/a/{**}":     {"/a/": true, "/a/x": true, "/a/x/y": true, "/a": false, "/ab": false},
		"/{*}/{**}/c": {"/x/y/c": true, "/x/y/z/c": true, "/x/c": false},
		"/a.b/{*}":    {"/a.b/c": true, "/axb/c": false},
	} {
		re := regexp.MustCompile("^(?:" + templateRegex(template) + ")$")
		for path, want := range paths {
			if re.MatchString(path) != want {
				t.Errorf("%s matches %s: %v", template, path, !want)
			}
		}
	}
}

// Every template that is accepted has an expression, of its own length at most a few
// times over.
func FuzzTemplate(f *testing.F) {
	f.Add("/a/{*}/b/{**}")
	f.Add("/{**}/{*}")
	f.Add("/a{*}(")
	f.Fuzz(func(t *testing.T, path string) {
		v := &validation{object: &source.AuthorizationPolicy{}}
		if v.template("path", path); !isTemplate(path) || len(v.out) > 0 || !utf8.ValidString(path) { // as every object is decoded
			return
		}
		s := templateRegex(path)
		if _, err := regexp.Compile(s); err != nil {
			t.Fatalf("%q: %v", path, err)
		}
		if len(s) > 3*len(path)+8 {
			t.Fatalf("%q becomes %q", path, s)
		}
	})
}
