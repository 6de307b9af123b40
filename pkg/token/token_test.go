package token

import (
	"context"
	"crypto/ecdsa"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/google/go-cmp/cmp"
)

var ztunnel = Claims{
	Namespace:      "culvert-system",
	ServiceAccount: Ref{"ztunnel", "sa-1"},
	Pod:            Ref{"ztunnel-x", "pod-1"},
	Node:           Ref{"node-1", "node-uid"},
}

func newIssuer(t testing.TB) *Issuer {
	t.Helper()
	i, err := NewIssuer(filepath.Join(t.TempDir(), "keys"))
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func issue(t testing.TB, i *Issuer, c Claims) string {
	t.Helper()
	raw, err := i.Issue(c)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	v := NewVerifier(VerifierConfig{JWKS: i.JWKS()})
	got, err := v.Authenticate(context.Background(), issue(t, i, ztunnel))
	if err != nil {
		t.Fatal(err)
	}
	want := ztunnel
	want.Audiences = []string{DefaultAudience}
	want.Issuer = DefaultIssuer
	want.Expiry = got.Expiry
	if d := cmp.Diff(want, *got); d != "" {
		t.Error(d)
	}
	if until := time.Until(got.Expiry); until < DefaultTTL-time.Minute || until > DefaultTTL {
		t.Errorf("expires in %s", until)
	}
	unbound := issue(t, i, Claims{Namespace: "a", ServiceAccount: Ref{Name: "b"}})
	if got, err = v.Authenticate(context.Background(), unbound); err != nil || got.Pod != (Ref{}) || got.Node != (Ref{}) {
		t.Errorf("unbound token: %+v, %v", got, err)
	}
}

func TestKeysSurviveAndRotate(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	v := NewVerifier(VerifierConfig{JWKS: i.JWKS()})
	before := issue(t, i, ztunnel)
	reopened, err := NewIssuer(i.dir)
	if err != nil {
		t.Fatal(err)
	}
	check := func(raw, what string) {
		t.Helper()
		if _, err := v.Authenticate(context.Background(), raw); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	check(issue(t, reopened, ztunnel), "token after reopening")
	if err := reopened.Rotate(); err != nil {
		t.Fatal(err)
	}
	check(before, "token from before the rotation")
	check(issue(t, reopened, ztunnel), "token from after the rotation")
	for range keptKeys {
		if err := reopened.Rotate(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := v.Authenticate(context.Background(), before); err == nil || !strings.Contains(err.Error(), "unknown key") {
		t.Errorf("token of a dropped key: %v", err)
	}
	info, err := os.Stat(filepath.Join(i.dir, keysFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key file: %v %v", info, err)
	}
	public, err := os.ReadFile(i.JWKS())
	if err != nil || strings.Contains(string(public), `"d"`) {
		t.Errorf("the JWKS holds private keys, or: %v", err)
	}
}

func TestVerifierKeepsLastGoodKeys(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	v := NewVerifier(VerifierConfig{JWKS: i.JWKS()})
	raw := issue(t, i, ztunnel)
	for _, spoil := range []func() error{
		func() error { return nil },
		func() error { return os.WriteFile(i.JWKS(), []byte("{"), 0o600) },
		func() error { return os.Remove(i.JWKS()) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		if _, err := v.Authenticate(context.Background(), raw); err != nil {
			t.Error(err)
		}
	}
	fresh := NewVerifier(VerifierConfig{JWKS: i.JWKS()})
	if _, err := fresh.Authenticate(context.Background(), raw); err == nil || !strings.Contains(err.Error(), "read keys") {
		t.Errorf("no keys at all: %v", err)
	}
}

// TestRefusals lists what is wrong with a token and the words that say so.
func TestRefusals(t *testing.T) {
	t.Parallel()
	i, other := newIssuer(t), newIssuer(t)
	other.keys.Keys[0].KeyID = i.keys.Keys[0].KeyID
	v := NewVerifier(VerifierConfig{JWKS: i.JWKS(), Issuer: DefaultIssuer})
	expired, audience, issuer := ztunnel, ztunnel, ztunnel
	expired.Expiry = time.Now().Add(-time.Hour)
	audience.Audiences = []string{"vault"}
	issuer.Issuer = "https://evil"
	good := issue(t, i, ztunnel)
	for name, c := range map[string]struct{ raw, want string }{
		"empty":         {"", "no token"},
		"garbage":       {"abc", "not a signed JWT"},
		"huge":          {strings.Repeat("a", maxToken+1), "bytes"},
		"expired":       {issue(t, i, expired), "token expired at"},
		"audience":      {issue(t, i, audience), "token is for audience vault, want istio-ca"},
		"issuer":        {issue(t, i, issuer), `token was issued by "https://evil"`},
		"foreign key":   {issue(t, other, ztunnel), "signature does not verify"},
		"unsigned":      {"eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0.", "not a signed JWT"},
		"tampered":      {good[:len(good)-4] + "AAAA", "signature does not verify"},
		"symmetric":     {symmetric(t, i), "not a signed JWT"},
		"no expiry":     {custom(t, i, jwt.Claims{Issuer: DefaultIssuer, Subject: "system:serviceaccount:a:b", Audience: []string{DefaultAudience}}, nil), "no expiry"},
		"not account":   {custom(t, i, valid("alice"), nil), "no service account"},
		"contradiction": {custom(t, i, valid("system:serviceaccount:a:b"), map[string]any{"kubernetes.io": map[string]any{"namespace": "x", "serviceaccount": map[string]any{"name": "b"}}}), "contradicts"},
		"claims shape":  {custom(t, i, valid("system:serviceaccount:a:b"), map[string]any{"kubernetes.io": "text"}), "malformed claims"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := v.Authenticate(context.Background(), c.raw)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if err != nil && len(c.raw) > 10 && strings.Contains(err.Error(), c.raw) {
				t.Error("the error repeats the token")
			}
		})
	}
}

func valid(subject string) jwt.Claims {
	return jwt.Claims{Issuer: DefaultIssuer, Subject: subject, Audience: []string{DefaultAudience}, Expiry: jwt.NewNumericDate(time.Now().Add(time.Hour))}
}

// custom signs any payload with the issuer's key.
func custom(t *testing.T, i *Issuer, std jwt.Claims, extra map[string]any) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: i.keys.Keys[0]}, nil)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := jwt.Signed(signer).Claims(std).Claims(extra).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// symmetric signs with the public key as an HMAC secret.
func symmetric(t *testing.T, i *Issuer) string {
	t.Helper()
	secret, err := i.keys.Keys[0].Key.(*ecdsa.PrivateKey).PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: jose.JSONWebKey{Key: secret, KeyID: i.keys.Keys[0].KeyID}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := jwt.Signed(signer).Claims(valid("system:serviceaccount:a:b")).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestParseJWKSRefusesSecrets(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	private, err := json.Marshal(i.keys)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{string(private), `{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}`, `{"keys":[]}`, `[]`} {
		if _, err := ParseJWKS([]byte(text)); err == nil {
			t.Errorf("accepted %s", text)
		}
	}
}

func TestFileSourceReadsAgain(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "token")
	source := FileSource(path)
	if _, err := source(); err == nil {
		t.Error("no error without a file")
	}
	for _, want := range []string{"one", "two"} {
		if err := os.WriteFile(path, []byte(want+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := source(); got != want || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
	}
	if err := os.WriteFile(path, []byte(" \n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := source(); err == nil || !strings.Contains(err.Error(), "is empty") {
		t.Errorf("empty file: %v", err)
	}
}

func TestDamagedKeysAreAnError(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, text := range []string{"{", `{"keys":[]}`, `{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}`} {
		if err := os.WriteFile(filepath.Join(dir, keysFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := NewIssuer(dir); err == nil || !strings.Contains(err.Error(), keysFile) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func FuzzAuthenticate(f *testing.F) {
	i := newIssuer(f)
	good := issue(f, i, ztunnel)
	f.Add(good)
	f.Add("eyJhbGciOiJub25lIn0.e30.")
	f.Add("..")
	v := NewVerifier(VerifierConfig{JWKS: i.JWKS()})
	f.Fuzz(func(t *testing.T, raw string) {
		c, err := v.Authenticate(context.Background(), raw)
		if err == nil && c.Account() != ztunnel.Account() {
			t.Errorf("forged %+v", c)
		}
	})
}

func FuzzParseJWKS(f *testing.F) {
	text, err := os.ReadFile(newIssuer(f).JWKS())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Fuzz(func(t *testing.T, text []byte) {
		if keys, err := ParseJWKS(text); err == nil && len(keys.Keys) == 0 {
			t.Error("no key and no error")
		}
	})
}
