// Package selfsigned is a certificate authority that makes its own root.
//
//	root (10 years) ──▶ intermediate (1 year) ──▶ leaf (hours)
//	    │                     └ replaced at half life
//	    └ RotateRoot: the next root is trusted at once, signs after a day, when
//	      everybody has it in a bundle; the old root stays trusted until all that
//	      it signed has expired
//
//	dir/authority.json   roots and intermediate with their keys (mode 0600)
//	dir/root-cert.pem    the trusted roots, for clients
//
// An Authority is safe for concurrent use. Several processes may use one folder:
// the first one makes the root, changes are made under a lock, and Run picks up
// what another process changed.
package selfsigned

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/culvert-mesh/culvert/pkg/certs"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/run"
)

// Lifetimes of what an authority makes.
const (
	RootLife         = 10 * 365 * 24 * time.Hour
	IntermediateLife = 365 * 24 * time.Hour
	DefaultTTL       = 24 * time.Hour
	MaxTTL           = 90 * 24 * time.Hour
	MinTTL           = time.Minute

	// StagingTime is how long a new root is only trusted before it signs: longer
	// than the half life at which certificates of DefaultTTL bring the new bundle.
	StagingTime = 24 * time.Hour

	// checkEvery is how often Run looks for something due; lives are far longer.
	checkEvery = time.Hour

	// backdate allows for clocks that are behind.
	backdate = 2 * time.Minute
)

// Authority signs certificates. It implements certs.Issuer.
type Authority struct {
	log *slog.Logger
	ttl time.Duration
	dir string // "" = kept nowhere

	changing sync.Mutex            // one change at a time
	state    atomic.Pointer[state] // nil when the material comes from elsewhere

	material atomic.Pointer[Material] // nil until there is some
	changed  atomic.Pointer[chan struct{}]
}

// Option changes an Authority from its defaults.
type Option func(*Authority)

// WithLog sets the logger; without it there is none, except for Fixed.
func WithLog(log *slog.Logger) Option { return func(a *Authority) { a.log = log } }

// WithTTL sets the validity of certificates made by Issue; the default is
// DefaultTTL.
func WithTTL(ttl time.Duration) Option { return func(a *Authority) { a.ttl = ttl } }

func newAuthority(dir string, opts []Option) *Authority {
	a := &Authority{log: slog.New(slog.DiscardHandler), ttl: DefaultTTL, dir: dir}
	for _, o := range opts {
		o(a)
	}
	a.changed.Store(new(make(chan struct{})))
	return a
}

// New returns an authority that signs with what Use gives it, and fails before.
func New(opts ...Option) *Authority { return newAuthority("", opts) }

// ErrNoKey is in the chain of errors of an authority that Use has given nothing yet.
var ErrNoKey = errors.New("the certificate authority has no key yet")

func (a *Authority) loaded() (*Material, error) {
	if m := a.material.Load(); m != nil {
		return m, nil
	}
	return nil, ErrNoKey
}

// Use makes the authority sign with m from now on.
func (a *Authority) Use(m *Material) {
	if old := a.material.Swap(m); !m.Equal(old) {
		close(*a.changed.Swap(new(make(chan struct{}))))
	}
}

// Changed returns a channel that is closed when what the authority signs with, or
// trusts, changes next. Who wants to miss nothing calls it before reading.
func (a *Authority) Changed() <-chan struct{} { return *a.changed.Load() }

// Material returns what the authority signs with, nil while it has nothing.
func (a *Authority) Material() *Material { return a.material.Load() }

// keep makes st the state.
func (a *Authority) keep(st *state) {
	a.state.Store(st)
	a.Use(st.material())
}

// NewAuthority opens the authority kept in dir, or makes a new one there. State
// that cannot be read is an error: it is never replaced, because everything that
// trusts its root would fail.
func NewAuthority(dir string, opts ...Option) (*Authority, error) {
	a := newAuthority(dir, opts)
	st, err := loadOrCreate(dir, time.Now())
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	a.keep(st)
	if err := a.rotate(time.Now()); err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	if err := writeBundle(dir, a.RootsPEM()); err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	return a, nil
}

// Ephemeral returns an authority with a new root that is kept nowhere.
func Ephemeral(opts ...Option) (*Authority, error) {
	a := newAuthority("", opts)
	st, err := newState(time.Now())
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	a.keep(st)
	return a, nil
}

// Run rotates the intermediate and the roots when their time comes, until ctx ends.
func (a *Authority) Run(ctx context.Context) error {
	for {
		if err := a.rotate(time.Now()); err != nil {
			a.log.Error("certificate authority rotation failed", "error", err)
		}
		if run.Sleep(ctx, run.Jitter(checkEvery, 0.2)) != nil {
			return nil
		}
	}
}

// rotate applies what is due at now and keeps the result.
func (a *Authority) rotate(now time.Time) error {
	return a.change(func(st *state) (*state, error) { return st.advance(now) })
}

// RotateRoot makes a new root and trusts it beside the present one. Run lets it
// sign after StagingTime.
func (a *Authority) RotateRoot() error {
	return a.change(func(st *state) (*state, error) { return st.addRoot(time.Now()) })
}

// PromoteRoot lets the newest root sign now. Peers that have not renewed since
// RotateRoot will refuse certificates signed from here on.
func (a *Authority) PromoteRoot() error {
	return a.change(func(st *state) (*state, error) { return st.promote(time.Now()) })
}

// change replaces the state by what edit returns, on disk first. edit returns its
// argument when there is nothing to do. On disk another process may have made
// changes of its own, so edit starts from there.
func (a *Authority) change(edit func(*state) (*state, error)) error {
	a.changing.Lock()
	defer a.changing.Unlock()
	base := a.state.Load()
	if a.dir != "" {
		unlock, err := lock(a.dir)
		if err != nil {
			return err
		}
		defer unlock()
		if base, err = load(a.dir); err != nil {
			return err
		}
	}
	if base == nil {
		return errors.New("the certificate authority is kept elsewhere")
	}
	next, err := edit(base)
	if err != nil {
		return err
	}
	if next != base {
		if a.dir != "" {
			if err := next.save(a.dir); err != nil {
				return err
			}
		}
		a.log.Info("certificate authority rotated", "roots", len(next.roots), "intermediate", next.intermediate.cert.Subject.CommonName)
	}
	a.keep(next)
	return nil
}

// RootsPEM returns the trusted roots as PEM, the content of root-cert.pem; nil
// while there are none.
func (a *Authority) RootsPEM() []byte {
	if m := a.material.Load(); m != nil {
		return m.bundle()
	}
	return nil
}

// Roots returns the trusted roots.
func (a *Authority) Roots() *x509.CertPool {
	pool := x509.NewCertPool()
	if m := a.material.Load(); m != nil {
		for _, c := range m.roots {
			pool.AddCert(c)
		}
	}
	return pool
}

// Issue implements certs.Issuer.
func (a *Authority) Issue(_ context.Context, id mesh.Identity) (*certs.SVID, error) {
	return a.IssueFor(id, a.ttl)
}

// IssueFor is Issue with a validity of its own.
func (a *Authority) IssueFor(id mesh.Identity, ttl time.Duration) (*certs.SVID, error) {
	key, csr, err := certs.NewRequest(id)
	if err != nil {
		return nil, err
	}
	chain, err := a.SignCSR(csr, id, ttl)
	if err != nil {
		return nil, err
	}
	return certs.ParseSVID(id, key, chain)
}

// signer is a CA certificate with its key.
type signer struct {
	cert *x509.Certificate
	key  crypto.Signer
}
