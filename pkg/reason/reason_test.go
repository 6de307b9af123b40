package reason

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"testing"
)

// TestFlags holds the response_flags of every reason that has one, in upstream's words.
func TestFlags(t *testing.T) {
	t.Parallel()
	flags := map[Reason]string{
		DeniedByPolicy: "DENY", DeniedByDefault: "DENY", DeniedPolicyAbsent: "DENY", PolicyChanged: "DENY",
		ConnectFailed: "CONNECT", ConnectRefused: "CONNECT", ConnectTimeout: "CONNECT",
		HBONETimeout: "NETWORK_POLICY", TLSFailure: "TLS_FAILURE", TunnelHandshake: "H2_HANDSHAKE_FAILURE",
		IdentityMismatch: "IDENTITY_ERROR", TrustDomain: "IDENTITY_ERROR", NoCertificate: "IDENTITY_ERROR", CertRevoked: "CERT_REVOKED",
	}
	for _, r := range all(t) {
		want := flags[r]
		if want == "" {
			want = "-"
		}
		if got := r.Flag(); got != want {
			t.Errorf("%q: %s, want %s", r, got, want)
		}
		delete(flags, r)
	}
	if len(flags) > 0 {
		t.Errorf("not in the list: %v", flags)
	}
}

// all returns the reasons that the package declares; no two may share their words.
func all(t *testing.T) (list []Reason) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "reason.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if kind, ok := spec.Type.(*ast.Ident); !ok || kind.Name != "Reason" {
			return true
		}
		text, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		if err != nil || seen[text] {
			t.Errorf("%s: %q, %v", spec.Names[0], text, err)
		}
		seen[text] = true
		list = append(list, Reason(text))
		return true
	})
	if len(list) < 40 {
		t.Errorf("%d reasons found", len(list))
	}
	return list
}

func TestErrors(t *testing.T) {
	t.Parallel()
	cause := errors.New("no route to host")
	err := fmt.Errorf("outer: %w", New(ConnectFailed, "connect", "10.0.0.1:80", cause))
	if got := err.Error(); got != "outer: connect 10.0.0.1:80: connect failed: no route to host" {
		t.Error(got)
	}
	if Of(err) != ConnectFailed || !errors.Is(err, cause) || Of(nil) != None || Of(cause) != Internal {
		t.Errorf("%q %q %q", Of(err), Of(nil), Of(cause))
	}
	if got := Newf(NoHealthyUpstream, "route", "", "%s", "10.0.0.1:80").Error(); got != "route: no healthy upstream: 10.0.0.1:80" {
		t.Error(got)
	}
}
