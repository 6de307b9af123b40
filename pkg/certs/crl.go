package certs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/culvert-mesh/culvert/pkg/reason"
)

// Direction says who made a TLS connection. Its text is the metrics' reporter.
type Direction string

// Directions.
const (
	Outgoing Direction = "source"
	Incoming Direction = "destination"
)

// RevocationConfig configures Revocations.
type RevocationConfig struct {
	Path   string        // PEM file with one or more lists
	Settle time.Duration // how long the file must be quiet before it is read; 0 = 2 s
	Log    *slog.Logger  // nil = none
	// Rejected, when set, is told of every connection that is refused or ended;
	// Loaded of every attempt to read the file. They must not block: metrics.
	// Untracked is told of connections that a later revocation will not end.
	Rejected, Untracked func(d Direction)
	Loaded              func(lists int, err error)
}

// Revocations is a file of certificate revocation lists (RFC 5280 §5), read again
// whenever it changes.
//
//	handshake ──▶ path, leaf to root ──▶ revoked?      unknown status: accepted
//	                    │ CAs                          list past its time: still counts
//	                    ▼                              list not signed by the CA: ignored
//	file ──▶ lists ──▶ Changed ──▶ Check(open connection's chain)
//
// Every certificate of a path is looked up, except the root itself. A file that
// cannot be read leaves the lists of before in force. A nil *Revocations accepts
// everybody. Safe for concurrent use.
type Revocations struct {
	cfg RevocationConfig

	mu      sync.RWMutex
	lists   map[string][]*revocationList // by the issuer's name, DER
	content [sha256.Size]byte            // of the file that lists came from
	failure string                       // of the last attempt to read it
	// issuers are the CAs of the paths that were verified, by their names: of an
	// open connection only the presented chain is known, which lacks the root.
	issuers map[string][]*x509.Certificate
	changed chan struct{}
}

// maxIssuers bounds the memory for CAs' names. A mesh has a handful.
const maxIssuers = 1024

// NewRevocations returns Revocations that have read nothing yet.
func NewRevocations(cfg RevocationConfig) *Revocations {
	if cfg.Settle == 0 {
		cfg.Settle = 2 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Revocations{cfg: cfg, issuers: make(map[string][]*x509.Certificate), changed: make(chan struct{})}
}

// Run reads the file whenever it changes, until ctx ends.
func (r *Revocations) Run(ctx context.Context) error {
	return WatchFile(ctx, r.cfg.Path, r.cfg.Settle, func() { _ = r.Load() })
}

// Load reads the file now. If that fails, what was read before stays in force;
// the error is logged and counted as well.
func (r *Revocations) Load() error {
	text, err := os.ReadFile(r.cfg.Path)
	if err == nil {
		if r.has(sha256.Sum256(text)) {
			r.isNews(nil)
			return nil
		}
		err = r.take(text)
	}
	if err != nil {
		err = fmt.Errorf("load revocation lists %s: %w", r.cfg.Path, err)
	}
	if r.isNews(err) {
		r.cfg.Log.Error("revocation lists not loaded, the last good ones stay in force", "path", r.cfg.Path, "error", err)
	}
	if r.cfg.Loaded != nil {
		r.cfg.Loaded(r.count(), err)
	}
	return err
}

// isNews notes how an attempt ended and reports whether it is a failure of another
// kind than the attempt before: one that lasts is logged once.
func (r *Revocations) isNews(err error) bool {
	text := ""
	if err != nil {
		text = err.Error()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	before := r.failure
	r.failure = text
	return text != "" && text != before
}

func (r *Revocations) has(content [sha256.Size]byte) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.lists != nil && r.content == content
}

func (r *Revocations) count() (n int) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, l := range r.lists {
		n += len(l)
	}
	return n
}

// take replaces the lists and wakes those who re-check connections.
func (r *Revocations) take(text []byte) error {
	parsed, err := parseLists(text)
	if err != nil {
		return err
	}
	lists := make(map[string][]*revocationList)
	now := time.Now()
	for _, l := range parsed {
		lists[string(l.RawIssuer)] = append(lists[string(l.RawIssuer)], l)
		r.cfg.Log.Info("revocation list loaded", "issuer", l.Issuer, "number", l.Number, "revoked", len(l.serials),
			"expired", !l.NextUpdate.IsZero() && now.After(l.NextUpdate))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lists, r.content = lists, sha256.Sum256(text)
	close(r.changed)
	r.changed = make(chan struct{})
	return nil
}

// Changed returns a channel that is closed when other lists have been read: then
// every open connection is to be checked again.
func (r *Revocations) Changed() <-chan struct{} {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.changed
}

// Check returns an error with reason.CertRevoked if one of chain is revoked. The
// chain must have been verified by a Profile with r, when its connection was made.
func (r *Revocations) Check(chain []*x509.Certificate, d Direction) error {
	return r.check(chain, nil, d)
}

// check is Check with CAs that are known for this time only.
func (r *Revocations) check(chain, cas []*x509.Certificate, d Direction) error {
	if r == nil {
		return nil
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, c := range chain {
		for _, l := range r.lists[string(c.RawIssuer)] {
			if !l.revokes(c) || signedItself(c) {
				continue // a root is trusted or it is not; nobody else can revoke it
			}
			if l.signedByOne(r.issuers[string(c.RawIssuer)], r.cfg.Log) || l.signedBy(cas) {
				if r.cfg.Rejected != nil {
					r.cfg.Rejected(d)
				}
				return reason.Newf(reason.CertRevoked, "verify peer", presented(chain),
					"serial %d, revoked by %s", c.SerialNumber, c.Issuer)
			}
		}
	}
	return nil
}

// checkPath is Check for a path that has just been verified, up to its root.
func (r *Revocations) checkPath(path []*x509.Certificate, d Direction) error {
	if r == nil {
		return nil
	}
	var unlearnt []*x509.Certificate
	if !r.learn(path[1:]) {
		unlearnt = path[1:]
		if r.cfg.Untracked != nil {
			r.cfg.Untracked(d)
		}
	}
	return r.check(path[:len(path)-1], unlearnt, d)
}

// learn keeps the CAs of a verified path. It returns false when there is no room.
func (r *Revocations) learn(cas []*x509.Certificate) bool {
	if r.knows(cas) {
		return true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, ca := range cas {
		name := string(ca.RawSubject)
		switch {
		case holds(r.issuers[name], ca):
		case len(r.issuers) >= maxIssuers || len(r.issuers[name]) >= maxIssuers:
			return false
		default:
			r.issuers[name] = append(r.issuers[name], ca)
		}
	}
	return true
}

func (r *Revocations) knows(cas []*x509.Certificate) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, ca := range cas {
		if !holds(r.issuers[string(ca.RawSubject)], ca) {
			return false
		}
	}
	return true
}

func holds(list []*x509.Certificate, c *x509.Certificate) bool {
	for _, have := range list {
		if have.Equal(c) {
			return true
		}
	}
	return false
}

// revocationList is one list. It is immutable but for the remembered verdicts.
type revocationList struct {
	*x509.RevocationList
	serials map[string]struct{}

	mu     sync.Mutex
	signed map[*x509.Certificate]bool // by that CA
}

// parseLists parses a file of PEM blocks.
func parseLists(text []byte) ([]*revocationList, error) {
	var out []*revocationList
	for rest := bytes.TrimSpace(text); len(rest) > 0; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return nil, errors.New("text that is no PEM block")
		}
		if block.Type != "X509 CRL" {
			return nil, fmt.Errorf("block %q, want X509 CRL", block.Type)
		}
		l, err := parseList(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("list %d: %w", len(out)+1, err)
		}
		out = append(out, l)
		rest = bytes.TrimSpace(rest)
	}
	if len(out) == 0 {
		return nil, errors.New("no revocation list")
	}
	return out, nil
}

// Extensions of lists and their entries (RFC 5280 §5.2, §5.3).
var (
	extAuthorityKey      = asn1.ObjectIdentifier{2, 5, 29, 35}
	extDistributionPoint = asn1.ObjectIdentifier{2, 5, 29, 28}
)

// parseList parses one list and refuses what would mean something else than "this
// issuer's certificates with these serials are revoked": a list of changes only
// (delta), and entries of other issuers.
func parseList(der []byte) (*revocationList, error) {
	parsed, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, err
	}
	for _, e := range parsed.Extensions {
		if e.Critical && !e.Id.Equal(extAuthorityKey) && !e.Id.Equal(extDistributionPoint) {
			return nil, fmt.Errorf("critical extension %s is not supported", e.Id)
		}
	}
	l := &revocationList{RevocationList: parsed, serials: make(map[string]struct{}), signed: make(map[*x509.Certificate]bool)}
	for _, entry := range parsed.RevokedCertificateEntries {
		for _, e := range entry.Extensions {
			if e.Critical {
				return nil, fmt.Errorf("entry %d: critical extension %s is not supported", entry.SerialNumber, e.Id)
			}
		}
		l.serials[string(entry.SerialNumber.Bytes())] = struct{}{}
	}
	return l, nil
}

func (l *revocationList) revokes(c *x509.Certificate) bool {
	_, revoked := l.serials[string(c.SerialNumber.Bytes())]
	return revoked
}

// signedItself reports whether c is a root: the names alone do not tell.
func signedItself(c *x509.Certificate) bool {
	return bytes.Equal(c.RawIssuer, c.RawSubject) && c.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature) == nil
}

// signedBy reports whether one of some CAs is the issuer and signed the list. It
// remembers nothing.
func (l *revocationList) signedBy(cas []*x509.Certificate) bool {
	for _, ca := range cas {
		if bytes.Equal(ca.RawSubject, l.RawIssuer) && l.CheckSignatureFrom(ca) == nil {
			return true
		}
	}
	return false
}

// signedByOne reports whether one of the CAs, which all have the issuer's name,
// signed the list.
func (l *revocationList) signedByOne(cas []*x509.Certificate, log *slog.Logger) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, ca := range cas {
		ok, known := l.signed[ca]
		if !known {
			err := l.CheckSignatureFrom(ca)
			if ok = err == nil; !ok {
				log.Warn("revocation list is not by the CA whose name it carries", "issuer", l.Issuer, "error", err)
			}
			l.signed[ca] = ok
		}
		if ok {
			return true
		}
	}
	return false
}
