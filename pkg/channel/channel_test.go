package channel

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/culvert-mesh/culvert/pkg/environ"
)

func TestRead(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		environ []string
		want    Channel
	}{
		{nil, Channel{Address: "https://fall:1", Roots: DefaultRoots}},
		{[]string{"XDS_ADDRESS="}, Channel{Roots: DefaultRoots}},
		{[]string{"XDS_ADDRESS=cp:15012", "XDS_ROOT_CA=SYSTEM", "ALT_XDS_HOSTNAME=cp2", "CA_ROOT_CA=x", "XDS_HEADER_a=b"},
			Channel{Address: "https://cp:15012", Roots: "SYSTEM", AltName: "cp2", Headers: map[string]string{"a": "b"}}},
		{[]string{"XDS_ADDRESS=http://[::1]:80"}, Channel{Address: "http://[::1]:80", Roots: DefaultRoots}},
	} {
		e := environ.New(c.environ)
		if c.want.Headers == nil {
			c.want.Headers = map[string]string{}
		}
		if diff := cmp.Diff(c.want, Read(e, "XDS", "https://fall:1")); diff != "" || e.Err() != nil {
			t.Errorf("%v: %v, -want +got\n%s", c.environ, e.Err(), diff)
		}
	}
	for _, bad := range []string{"ftp://x", "https://", "http://%"} {
		e := environ.New([]string{"CA_ADDRESS=" + bad})
		if Read(e, "CA", ""); e.Err() == nil || !strings.HasPrefix(e.Err().Error(), "CA_ADDRESS: ") {
			t.Errorf("%s: %v", bad, e.Err())
		}
	}
}

func TestToken(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("first\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	read := func(environment ...string) string {
		t.Helper()
		v, err := ReadToken(environ.New(environment)).Read()
		if err != nil {
			t.Error(err)
		}
		return v
	}
	if got := read(); got != "" {
		t.Errorf("without a token %q is sent", got)
	}
	if got := read("AUTH_TOKEN=secret"); got != "secret" {
		t.Errorf("the token itself: %q", got)
	}
	if got := read("AUTH_TOKEN=" + file); got != "first" {
		t.Errorf("a file: %q", got)
	}
	tok := ReadToken(environ.New([]string{"AUTH_TOKEN=" + file}))
	if err := os.WriteFile(file, []byte("second"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := tok.Read(); got != "second" || err != nil {
		t.Errorf("a replaced file: %q, %v", got, err)
	}
}
