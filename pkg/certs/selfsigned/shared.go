package selfsigned

import (
	"bytes"
	"fmt"
	"time"

	"github.com/culvert-mesh/culvert/pkg/certs"
)

// State is a self-made authority as it is kept: its roots and its intermediate,
// with their keys. Who keeps it somewhere else than in a folder shares it between
// processes by replacing only the version that a change was made of. Immutable.
type State struct{ st *state }

// NewState makes a new root with an intermediate.
func NewState(now time.Time) (State, error) {
	st, err := newState(now)
	return State{st}, err
}

// ParseState reads what Encode has written.
func ParseState(text []byte) (State, error) {
	st, err := parseState(text)
	return State{st}, err
}

// AdoptState goes on with a root that another program made, and that it signed
// with directly. An intermediate follows when one is due and the root allows it.
func AdoptState(certPEM, keyPEM []byte, now time.Time) (State, error) {
	parsed, err := certs.ParsePEM(certPEM)
	if err != nil {
		return State{}, fmt.Errorf("root: %w", err)
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return State{}, fmt.Errorf("root's private key: %w", err)
	}
	s := &signer{parsed[0], key}
	if err := s.check(now); err != nil {
		return State{}, err
	}
	if !bytes.Equal(s.cert.RawIssuer, s.cert.RawSubject) {
		return State{}, fmt.Errorf("%q is no root: it was signed by %q", s.cert.Subject, s.cert.Issuer)
	}
	return State{&state{roots: []root{{signer: s, added: s.cert.NotBefore}}, intermediate: s}}, nil
}

// Encode returns the state as JSON, keys included.
func (s State) Encode() ([]byte, error) { return s.st.encode() }

// Advance returns the state as it should be at now, and whether that is another
// one: an intermediate is replaced at half its life; a root that is past four
// fifths of its life gets a successor that is trusted at once and signs after
// StagingTime.
func (s State) Advance(now time.Time) (next State, changed bool, err error) {
	st, err := s.st.advance(now)
	if err != nil {
		return s, false, err
	}
	return State{st}, st != s.st, nil
}

// Rotate returns the state with a new root beside the present one, as
// Authority.RotateRoot does.
func (s State) Rotate(now time.Time) (State, error) {
	st, err := s.st.addRoot(now)
	return State{st}, err
}

// Material returns what the state signs with.
func (s State) Material() *Material { return s.st.material() }

// Files returns the signing root and every trusted one, in the form in which
// others read an authority.
func (s State) Files() (Files, error) {
	out, err := s.st.roots[s.st.signing].store()
	return Files{Cert: []byte(out.Cert), Key: []byte(out.Key), Roots: s.st.material().bundle()}, err
}
