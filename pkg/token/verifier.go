package token

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// leeway is how far clocks may be apart.
const leeway = 10 * time.Second

// maxToken bounds what is parsed at all.
const maxToken = 64 << 10

// algorithms are asymmetric: with a symmetric one the public keys could sign.
var algorithms = []jose.SignatureAlgorithm{
	jose.ES256, jose.ES384, jose.ES512, jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.EdDSA,
}

// VerifierConfig configures a Verifier.
type VerifierConfig struct {
	JWKS      string   // file of public keys, read again when it changes
	Audiences []string // any one is accepted; empty = DefaultAudience
	Issuer    string   // required issuer; empty = any
}

// Verifier checks tokens against a JWKS file. It implements the Authenticator of
// controlplane/ca.
type Verifier struct {
	cfg VerifierConfig

	mu     sync.Mutex
	keys   *jose.JSONWebKeySet // last good content
	loaded fs.FileInfo
}

// NewVerifier returns a verifier, which reads its keys at first use.
func NewVerifier(cfg VerifierConfig) *Verifier {
	if len(cfg.Audiences) == 0 {
		cfg.Audiences = []string{DefaultAudience}
	}
	return &Verifier{cfg: cfg}
}

// Authenticate checks a token's signature, expiry, audience and issuer, and
// returns its claims. Errors say which of them failed and never repeat the token.
func (v *Verifier) Authenticate(_ context.Context, raw string) (*Claims, error) {
	c, err := v.authenticate(raw, time.Now())
	if err != nil {
		return nil, fmt.Errorf("verify token: %w", err)
	}
	return c, nil
}

func (v *Verifier) authenticate(raw string, now time.Time) (*Claims, error) {
	if raw == "" {
		return nil, errors.New("no token")
	}
	if len(raw) > maxToken {
		return nil, fmt.Errorf("token of %d bytes, at most %d are accepted", len(raw), maxToken)
	}
	parsed, err := jwt.ParseSigned(raw, algorithms)
	if err != nil {
		return nil, errors.New("not a signed JWT of an accepted algorithm")
	}
	candidates, err := v.candidates(parsed.Headers[0].KeyID)
	if err != nil {
		return nil, err
	}
	var (
		std     jwt.Claims
		private private
	)
	if err := verifyWith(parsed, candidates, &std, &private); err != nil {
		return nil, err
	}
	if err := v.validate(std, now); err != nil {
		return nil, err
	}
	return decode(std, private)
}

// verifyWith tries each key and decodes the payload with the first that fits.
func verifyWith(t *jwt.JSONWebToken, keys []jose.JSONWebKey, out ...any) error {
	for _, key := range keys {
		err := t.Claims(key, out...)
		if err == nil {
			return nil
		}
		if !errors.Is(err, jose.ErrCryptoFailure) && !errors.Is(err, jose.ErrUnsupportedKeyType) && !errors.Is(err, jose.ErrUnsupportedAlgorithm) {
			return fmt.Errorf("malformed claims: %w", err)
		}
	}
	return errors.New("signature does not verify")
}

// validate checks the registered claims (RFC 7519 §4.1).
func (v *Verifier) validate(std jwt.Claims, now time.Time) error {
	if std.Expiry == nil {
		return errors.New("token has no expiry")
	}
	err := std.ValidateWithLeeway(jwt.Expected{Issuer: v.cfg.Issuer, AnyAudience: v.cfg.Audiences, Time: now}, leeway)
	switch {
	case errors.Is(err, jwt.ErrExpired):
		return fmt.Errorf("token expired at %s", std.Expiry.Time().UTC().Format(time.RFC3339))
	case errors.Is(err, jwt.ErrInvalidAudience):
		return fmt.Errorf("token is for audience %s, want %s", strings.Join(std.Audience, " or "), strings.Join(v.cfg.Audiences, " or "))
	case errors.Is(err, jwt.ErrInvalidIssuer):
		return fmt.Errorf("token was issued by %q, want %q", std.Issuer, v.cfg.Issuer)
	case errors.Is(err, jwt.ErrNotValidYet), errors.Is(err, jwt.ErrIssuedInTheFuture):
		return errors.New("token is not valid yet")
	}
	return err
}

// candidates returns the keys that may have signed a token: those with its key ID,
// or all of them when it names none.
func (v *Verifier) candidates(kid string) ([]jose.JSONWebKey, error) {
	keys, err := v.load()
	if err != nil {
		return nil, err
	}
	if kid == "" {
		return keys.Keys, nil
	}
	found := keys.Key(kid)
	if len(found) == 0 {
		return nil, fmt.Errorf("signed with unknown key %.64q", kid)
	}
	return found, nil
}

// load returns the public keys, read again when the file is another one. A file
// that cannot be read any more leaves the last good keys in force.
func (v *Verifier) load() (*jose.JSONWebKeySet, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	info, err := os.Stat(v.cfg.JWKS)
	if err == nil && v.loaded != nil && os.SameFile(info, v.loaded) && info.ModTime().Equal(v.loaded.ModTime()) && info.Size() == v.loaded.Size() {
		return v.keys, nil
	}
	var text []byte
	if err == nil {
		text, err = os.ReadFile(v.cfg.JWKS)
	}
	var keys *jose.JSONWebKeySet
	if err == nil {
		keys, err = ParseJWKS(text)
	}
	if err == nil {
		v.keys, v.loaded = keys, info
	}
	if v.keys == nil {
		return nil, fmt.Errorf("read keys: %w", err)
	}
	return v.keys, nil
}

// ParseJWKS parses a set of public keys (RFC 7517). Private and symmetric keys in
// it are an error: such a file must not be lying around.
func ParseJWKS(text []byte) (*jose.JSONWebKeySet, error) {
	var keys jose.JSONWebKeySet
	if err := json.Unmarshal(text, &keys); err != nil {
		return nil, fmt.Errorf("parse JWKS: %w", err)
	}
	if len(keys.Keys) == 0 {
		return nil, errors.New("parse JWKS: no key")
	}
	for i := range keys.Keys {
		if !keys.Keys[i].IsPublic() {
			return nil, fmt.Errorf("parse JWKS: key %d is not a public key", i)
		}
	}
	return &keys, nil
}
