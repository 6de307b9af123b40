package certs

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"sync"
	"time"
)

// verifier checks peers' chains against one set of roots. Between two nodes the
// same few chains arrive again and again, and two ECDSA verifications are a third
// of a handshake, so it remembers chains that verified.
//
// That is safe because the outcome depends on nothing but what is in the key
// (every byte the peer presented, and the wanted usage), the roots, which never
// change, and the time, which is compared again at each use. Only successes are
// kept, so nobody without a valid chain can fill the memory.
type verifier struct {
	roots *x509.CertPool

	mu   sync.RWMutex
	seen map[[sha256.Size]byte]verified
}

// verified is a path from a leaf to a root, and when all of it is valid.
type verified struct {
	path                []*x509.Certificate
	notBefore, notAfter time.Time
}

// maxSeen bounds the memory of one verifier to about half a megabyte.
const maxSeen = 4096

func newVerifier(roots *x509.CertPool) *verifier {
	return &verifier{roots: roots, seen: make(map[[sha256.Size]byte]verified)}
}

// verify checks the chain that a peer presented, leaf first, and returns the path
// from its leaf to a root.
func (v *verifier) verify(chain []*x509.Certificate, usage x509.ExtKeyUsage, now time.Time) ([]*x509.Certificate, error) {
	if len(chain) == 0 {
		return nil, errors.New("peer presented no certificate")
	}
	key := chainKey(chain, usage)
	v.mu.RLock()
	w, ok := v.seen[key]
	v.mu.RUnlock()
	if ok && !now.Before(w.notBefore) && !now.After(w.notAfter) {
		return w.path, nil
	}
	path, err := v.verifyFully(chain, usage, now)
	if err != nil {
		return nil, err
	}
	v.remember(key, validity(path))
	return path, nil
}

// verifyFully builds and checks a path to a root (RFC 5280 §6).
func (v *verifier) verifyFully(chain []*x509.Certificate, usage x509.ExtKeyUsage, now time.Time) ([]*x509.Certificate, error) {
	intermediates := x509.NewCertPool()
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	paths, err := chain[0].Verify(x509.VerifyOptions{
		Roots:         v.roots,
		Intermediates: intermediates,
		CurrentTime:   now,
		KeyUsages:     []x509.ExtKeyUsage{usage},
	})
	if err != nil {
		return nil, err
	}
	return paths[0], nil
}

func (v *verifier) remember(key [sha256.Size]byte, w verified) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.seen) >= maxSeen {
		clear(v.seen)
	}
	v.seen[key] = w
}

// chainKey hashes everything about a chain that its verification depends on.
func chainKey(chain []*x509.Certificate, usage x509.ExtKeyUsage) (key [sha256.Size]byte) {
	h := sha256.New()
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], uint64(usage))
	h.Write(n[:])
	for _, c := range chain {
		binary.BigEndian.PutUint64(n[:], uint64(len(c.Raw)))
		h.Write(n[:])
		h.Write(c.Raw)
	}
	h.Sum(key[:0])
	return key
}

// validity is the time in which all certificates of a path are valid.
func validity(path []*x509.Certificate) verified {
	w := verified{path, path[0].NotBefore, path[0].NotAfter}
	for _, c := range path[1:] {
		if c.NotBefore.After(w.notBefore) {
			w.notBefore = c.NotBefore
		}
		if c.NotAfter.Before(w.notAfter) {
			w.notAfter = c.NotAfter
		}
	}
	return w
}
