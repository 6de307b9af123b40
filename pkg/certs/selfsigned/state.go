package selfsigned

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/culvert-mesh/culvert/pkg/certs"
)

// Files in an authority's folder.
const (
	stateFile  = "authority.json"
	lockFile   = "authority.lock"
	BundleFile = "root-cert.pem"
)

// state is everything that an authority keeps. Immutable.
type state struct {
	roots        []root // oldest first; the last one may be staged
	signing      int    // index of the root that signs
	intermediate *signer
}

// root is one trusted root.
type root struct {
	*signer
	added   time.Time
	retired time.Time // when the next root took over; zero for the present and the staged one
}

// newState makes a first root and intermediate.
func newState(now time.Time) (*state, error) {
	r, err := newRoot(now)
	if err != nil {
		return nil, err
	}
	st := &state{roots: []root{{signer: r, added: now}}}
	if st.intermediate, err = r.newIntermediate(now); err != nil {
		return nil, err
	}
	return st, nil
}

// advance returns the state as it should be at now: a staged root promoted,
// retired roots dropped when nothing they signed is valid any more, an old
// intermediate replaced, a root past 80 % of its life succeeded. It returns st
// itself when nothing is due.
func (st *state) advance(now time.Time) (*state, error) {
	next, err := st.dropRetired(now), error(nil)
	newest := next.roots[len(next.roots)-1]
	staged := next.signing < len(next.roots)-1
	switch {
	case staged && now.Sub(newest.added) >= StagingTime:
		return next.promote(now)
	case !staged && newest.older(now, 0.8):
		if next, err = next.addRoot(now); err != nil {
			return nil, err
		}
	}
	if next.intermediate.older(now, 0.5) && next.roots[next.signing].mayDelegate() {
		return next.renewIntermediate(now)
	}
	return next, nil
}

// older reports whether more than a fraction of the certificate's life is over.
func (s *signer) older(now time.Time, fraction float64) bool {
	life := s.cert.NotAfter.Sub(s.cert.NotBefore)
	return now.Sub(s.cert.NotBefore) > time.Duration(float64(life)*fraction)
}

// dropRetired forgets retired roots once the longest-lived certificate below them
// must have expired.
func (st *state) dropRetired(now time.Time) *state {
	keep := st.roots[:0:0]
	for i, r := range st.roots {
		gone := !r.retired.IsZero() && now.After(r.retired.Add(MaxTTL+backdate))
		if !gone || i == st.signing {
			keep = append(keep, r)
		}
	}
	dropped := len(st.roots) - len(keep)
	if dropped == 0 {
		return st
	}
	return &state{keep, st.signing - dropped, st.intermediate}
}

// addRoot stages a new root.
func (st *state) addRoot(now time.Time) (*state, error) {
	if st.signing < len(st.roots)-1 {
		return nil, errors.New("rotate root: a rotation is already under way")
	}
	r, err := newRoot(now)
	if err != nil {
		return nil, err
	}
	return &state{append(st.roots[:len(st.roots):len(st.roots)], root{signer: r, added: now}), st.signing, st.intermediate}, nil
}

// promote lets the newest root sign.
func (st *state) promote(now time.Time) (*state, error) {
	last := len(st.roots) - 1
	if st.signing == last {
		return nil, errors.New("promote root: there is no new root")
	}
	next := &state{append([]root(nil), st.roots...), last, nil}
	next.roots[st.signing].retired = now
	return next.renewIntermediate(now)
}

// mayDelegate reports whether the root's certificate allows intermediates.
func (r root) mayDelegate() bool { return !r.cert.MaxPathLenZero }

func (st *state) renewIntermediate(now time.Time) (*state, error) {
	im, err := st.roots[st.signing].newIntermediate(now)
	if err != nil {
		return nil, err
	}
	return &state{st.roots, st.signing, im}, nil
}

// material returns what the state signs with.
func (st *state) material() *Material {
	m := &Material{signer: st.intermediate, roots: []*x509.Certificate{st.roots[st.signing].cert}}
	if !st.direct() {
		m.chain = []*x509.Certificate{st.intermediate.cert}
	}
	for i, r := range st.roots {
		if i != st.signing {
			m.roots = append(m.roots, r.cert)
		}
	}
	return m
}

// direct reports whether the root itself signs leaves.
func (st *state) direct() bool { return st.intermediate.cert.Equal(st.roots[st.signing].cert) }

// stored is the JSON form of a state.
type stored struct {
	Roots        []storedRoot `json:"roots"`
	Signing      int          `json:"signing"`
	Intermediate storedSigner `json:"intermediate"`
}

type storedRoot struct {
	storedSigner
	Added   time.Time `json:"added"`
	Retired time.Time `json:"retired,omitzero"`
}

type storedSigner struct {
	Cert string `json:"cert"` // PEM
	Key  string `json:"key"`  // PEM, PKCS #8
}

// loadOrCreate returns the state kept in dir, or makes and keeps a new one. When
// two processes start at once both end up with the same one.
func loadOrCreate(dir string, now time.Time) (*state, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	st, err := load(dir)
	if !errors.Is(err, fs.ErrNotExist) {
		return st, err
	}
	if st, err = newState(now); err != nil {
		return nil, err
	}
	err = st.create(dir)
	if errors.Is(err, fs.ErrExist) {
		return load(dir)
	}
	return st, err
}

func load(dir string) (*state, error) {
	path := filepath.Join(dir, stateFile)
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	st, err := parseState(text)
	if err != nil {
		return nil, fmt.Errorf("state file %s is damaged: %w (restore it, or remove it to start over with a new root that nobody trusts yet)", path, err)
	}
	return st, nil
}

func parseState(text []byte) (*state, error) {
	var in stored
	if err := json.Unmarshal(text, &in); err != nil {
		return nil, err
	}
	if in.Signing < 0 || in.Signing >= len(in.Roots) {
		return nil, fmt.Errorf("signing root %d of %d", in.Signing, len(in.Roots))
	}
	st := &state{signing: in.Signing}
	for i, r := range in.Roots {
		s, err := r.parse()
		if err != nil {
			return nil, fmt.Errorf("root %d: %w", i, err)
		}
		st.roots = append(st.roots, root{s, r.Added, r.Retired})
	}
	var err error
	if st.intermediate, err = in.Intermediate.parse(); err != nil {
		return nil, fmt.Errorf("intermediate: %w", err)
	}
	if err := st.intermediate.cert.CheckSignatureFrom(st.roots[st.signing].cert); err != nil {
		return nil, fmt.Errorf("intermediate is not signed by the signing root: %w", err)
	}
	return st, nil
}

func (in storedSigner) parse() (*signer, error) {
	parsed, err := certs.ParsePEM([]byte(in.Cert))
	if err != nil {
		return nil, err
	}
	s, err := parseKey([]byte(in.Key))
	if err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	if !belongs(s, parsed[0]) {
		return nil, errors.New("key does not belong to the certificate")
	}
	return &signer{parsed[0], s}, nil
}

func (s *signer) store() (storedSigner, error) {
	der, err := x509.MarshalPKCS8PrivateKey(s.key)
	if err != nil {
		return storedSigner{}, err
	}
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	return storedSigner{string(certs.EncodePEM(s.cert)), string(key)}, nil
}

func (st *state) encode() ([]byte, error) {
	out := stored{Signing: st.signing}
	for _, r := range st.roots {
		s, err := r.store()
		if err != nil {
			return nil, fmt.Errorf("encode root: %w", err)
		}
		out.Roots = append(out.Roots, storedRoot{s, r.added, r.retired})
	}
	var err error
	if out.Intermediate, err = st.intermediate.store(); err != nil {
		return nil, fmt.Errorf("encode intermediate: %w", err)
	}
	return json.MarshalIndent(out, "", "  ")
}

// lock keeps other processes from changing the state in dir until unlock. The
// kernel releases it when a process dies.
func lock(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return func() { f.Close() }, nil
}

// save replaces the state in dir, and then the bundle.
func (st *state) save(dir string) error {
	text, err := st.encode()
	if err != nil {
		return err
	}
	temp, err := writeTemp(dir, stateFile, text, 0o600)
	if err != nil {
		return err
	}
	if err := os.Rename(temp, filepath.Join(dir, stateFile)); err != nil {
		return err
	}
	return writeBundle(dir, st.material().bundle())
}

// create keeps a first state in dir; it fails with fs.ErrExist when there is one.
func (st *state) create(dir string) error {
	text, err := st.encode()
	if err != nil {
		return err
	}
	temp, err := writeTemp(dir, stateFile, text, 0o600)
	if err != nil {
		return err
	}
	defer os.Remove(temp)
	return os.Link(temp, filepath.Join(dir, stateFile))
}

// writeBundle replaces the roots for clients in dir.
func writeBundle(dir string, bundle []byte) error {
	temp, err := writeTemp(dir, BundleFile, bundle, 0o644)
	if err != nil {
		return err
	}
	return os.Rename(temp, filepath.Join(dir, BundleFile))
}

// writeTemp writes and syncs a new file in dir that will become name.
func writeTemp(dir, name string, content []byte, mode fs.FileMode) (path string, err error) {
	f, err := os.CreateTemp(dir, name+".*.new")
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, err = f.Write(content)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	return f.Name(), err
}
