package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// Files in an issuer's folder.
const (
	keysFile = "keys.json"
	jwksFile = "jwks.json"
)

// keptKeys is how many keys verifiers are told of: the signing one and those
// before it, whose tokens may still be in use.
const keptKeys = 4

// Issuer makes tokens signed with ES256.
type Issuer struct {
	dir string

	mu   sync.Mutex
	keys jose.JSONWebKeySet // private; the last one signs
}

// NewIssuer opens the keys in dir, or makes a first one there. Keys that cannot be
// read are an error and stay as they are.
func NewIssuer(dir string) (*Issuer, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("token keys: %w", err)
	}
	i := &Issuer{dir: dir}
	path := filepath.Join(dir, keysFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return i, i.Rotate()
	}
	if err == nil {
		err = json.Unmarshal(text, &i.keys)
	}
	if err == nil && !usable(i.keys.Keys) {
		err = errors.New("no private key")
	}
	if err != nil {
		return nil, fmt.Errorf("token keys: %s: %w", path, err)
	}
	return i, i.publish()
}

// usable reports whether all keys can sign and there is one.
func usable(keys []jose.JSONWebKey) bool {
	for _, k := range keys {
		if _, ok := k.Key.(*ecdsa.PrivateKey); !ok {
			return false
		}
	}
	return len(keys) > 0
}

// Issue returns a signed token with these claims. Empty Audiences means
// DefaultAudience, an empty Issuer DefaultIssuer and a zero Expiry DefaultTTL from
// now.
func (i *Issuer) Issue(c Claims) (string, error) {
	if c.Namespace == "" || c.ServiceAccount.Name == "" {
		return "", errors.New("issue token: namespace and service account are required")
	}
	now := time.Now()
	if len(c.Audiences) == 0 {
		c.Audiences = []string{DefaultAudience}
	}
	if c.Issuer == "" {
		c.Issuer = DefaultIssuer
	}
	if c.Expiry.IsZero() {
		c.Expiry = now.Add(DefaultTTL)
	}
	i.mu.Lock()
	key := i.keys.Keys[len(i.keys.Keys)-1]
	i.mu.Unlock()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return "", fmt.Errorf("issue token for %s: %w", c.Account(), err)
	}
	std, private := c.encode(now)
	raw, err := jwt.Signed(signer).Claims(std).Claims(private).Serialize()
	if err != nil {
		return "", fmt.Errorf("issue token for %s: %w", c.Account(), err)
	}
	return raw, nil
}

// JWKS returns the path of the public keys, for VerifierConfig.
func (i *Issuer) JWKS() string { return filepath.Join(i.dir, jwksFile) }

// Rotate signs with a new key from now on. The few keys before it stay in the
// JWKS, so that their tokens remain valid.
func (i *Issuer) Rotate() error {
	key, err := newKey()
	if err != nil {
		return fmt.Errorf("make token key: %w", err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	next := append(i.keys.Keys[:len(i.keys.Keys):len(i.keys.Keys)], key)
	next = next[max(0, len(next)-keptKeys):]
	text, err := json.MarshalIndent(jose.JSONWebKeySet{Keys: next}, "", "  ")
	if err != nil {
		return fmt.Errorf("encode token keys: %w", err)
	}
	// Verifiers must know a key before the first token that it signs.
	if err := i.publishLocked(next); err != nil {
		return err
	}
	if err := replaceFile(filepath.Join(i.dir, keysFile), text, 0o600); err != nil {
		return fmt.Errorf("keep token keys: %w", err)
	}
	i.keys.Keys = next
	return nil
}

func newKey() (jose.JSONWebKey, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return jose.JSONWebKey{}, err
	}
	key := jose.JSONWebKey{Key: private, Algorithm: string(jose.ES256), Use: "sig"}
	print, err := key.Thumbprint(crypto.SHA256)
	key.KeyID = base64.RawURLEncoding.EncodeToString(print)
	return key, err
}

func (i *Issuer) publish() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.publishLocked(i.keys.Keys)
}

// publishLocked writes the public halves of keys.
func (i *Issuer) publishLocked(keys []jose.JSONWebKey) error {
	var public jose.JSONWebKeySet
	for _, k := range keys {
		public.Keys = append(public.Keys, k.Public())
	}
	text, err := json.MarshalIndent(public, "", "  ")
	if err != nil {
		return fmt.Errorf("encode token keys: %w", err)
	}
	if err := replaceFile(i.JWKS(), text, 0o644); err != nil {
		return fmt.Errorf("publish token keys: %w", err)
	}
	return nil
}

// replaceFile replaces a file's content at once.
func replaceFile(path string, content []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*.new")
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}
