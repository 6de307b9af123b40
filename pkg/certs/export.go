package certs

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// exported is what one process hands to its successor:
//
//	{version, certificates: [DER…], entries: [{id, key, chain, roots}…]}
//
// Chains and roots are indices of certificates, so that roots which every identity
// trusts are there once. Private keys are in it: it must never reach a disk.
type exported struct {
	Version      int             `json:"version"`
	Certificates [][]byte        `json:"certificates"`
	Entries      []exportedEntry `json:"entries"`
}

type exportedEntry struct {
	ID        string           `json:"id"`
	Key       []byte           `json:"key"` // PKCS #8
	Chain     []int            `json:"chain"`
	Roots     []int            `json:"roots"`
	Federated map[string][]int `json:"federated"` // by trust domain; null = not restricted, which {} is not
	Used      bool             `json:"used,omitempty"`
}

// exportVersion changes when an older reader would misunderstand a newer writer.
const exportVersion = 1

// Export encodes every certificate that is valid now, with its private key, for
// Import in another process of the same program. It is secret.
func (c *Cache) Export() ([]byte, error) {
	b := exporter{out: exported{Version: exportVersion}, index: make(map[[sha256.Size]byte]int)}
	for _, s := range c.valid() {
		if err := b.add(s.svid, s.used); err != nil {
			return nil, err
		}
	}
	return json.Marshal(b.out)
}

type validEntry struct {
	svid *SVID
	used bool
}

// valid returns the certificates to export, sorted by identity.
func (c *Cache) valid() []validEntry {
	c.mu.RLock()
	defer c.mu.RUnlock()
	now := time.Now()
	var out []validEntry
	for _, e := range c.entries {
		if e.valid(now) {
			out = append(out, validEntry{e.svid, e.used.Load()})
		}
	}
	slices.SortFunc(out, func(a, b validEntry) int { return strings.Compare(a.svid.ID.String(), b.svid.ID.String()) })
	return out
}

// exporter numbers the certificates.
type exporter struct {
	out   exported
	index map[[sha256.Size]byte]int
}

func (b *exporter) add(s *SVID, used bool) error {
	key, err := x509.MarshalPKCS8PrivateKey(s.Leaf.PrivateKey)
	if err != nil {
		return fmt.Errorf("export key of %s: %w", s.ID, err)
	}
	e := exportedEntry{ID: s.ID.String(), Key: key, Chain: b.numbers(s.Chain), Roots: b.numbers(s.RootCerts), Used: used}
	if s.Federated != nil {
		e.Federated = make(map[string][]int)
		for _, td := range slices.Sorted(maps.Keys(s.Federated)) {
			e.Federated[td] = b.numbers(s.Federated[td])
		}
	}
	b.out.Entries = append(b.out.Entries, e)
	return nil
}

func (b *exporter) numbers(list []*x509.Certificate) []int {
	out := make([]int, len(list))
	for i, c := range list {
		sum := sha256.Sum256(c.Raw)
		n, known := b.index[sum]
		if !known {
			n = len(b.out.Certificates)
			b.index[sum] = n
			b.out.Certificates = append(b.out.Certificates, c.Raw)
		}
		out[i] = n
	}
	return out
}

// Import adds the certificates that another process exported: those that are still
// valid, and of identities for which none is held. It takes all of data or, with
// an error, nothing. They are renewed like any other. Call it before Run.
func (c *Cache) Import(data []byte) error {
	entries, err := decodeExport(data)
	if err != nil {
		return fmt.Errorf("import certificates: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	for _, v := range entries {
		if e := c.entryLocked(v.svid.ID); e.svid == nil && e.done == nil {
			e.svid, e.err = v.svid, nil
			e.used.Store(v.used)
			e.due = c.renewAt(v.svid, now)
			if c.stream != nil {
				e.due = now // for the streams to begin
			}
		}
	}
	c.signal()
	return nil
}

func decodeExport(data []byte) ([]validEntry, error) {
	var in exported
	if err := json.Unmarshal(data, &in); err != nil {
		return nil, err
	}
	if in.Version != exportVersion {
		return nil, fmt.Errorf("version %d, want %d", in.Version, exportVersion)
	}
	table := make([]*x509.Certificate, len(in.Certificates))
	for i, der := range in.Certificates {
		var err error
		if table[i], err = x509.ParseCertificate(der); err != nil {
			return nil, fmt.Errorf("certificate %d: %w", i, err)
		}
	}
	now := time.Now()
	var out []validEntry
	for _, e := range in.Entries {
		svid, err := e.decode(table)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", e.ID, err)
		}
		if now.Before(svid.NotAfter) {
			out = append(out, validEntry{svid, e.Used})
		}
	}
	return out, nil
}

func (e exportedEntry) decode(table []*x509.Certificate) (*SVID, error) {
	id, err := mesh.ParseIdentity(e.ID)
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(e.Key)
	if err != nil {
		return nil, err
	}
	key, ok := parsed.(crypto.Signer)
	if !ok {
		return nil, errors.New("key that cannot sign")
	}
	chain, err := lookUp(table, e.Chain)
	if err != nil {
		return nil, err
	}
	roots, err := lookUp(table, e.Roots)
	if err != nil {
		return nil, err
	}
	var federated map[string][]*x509.Certificate
	if e.Federated != nil {
		federated = make(map[string][]*x509.Certificate)
		for td, numbers := range e.Federated {
			if federated[td], err = lookUp(table, numbers); err != nil {
				return nil, err
			}
		}
	}
	return newSVID(id, key, chain, roots, federated)
}

// lookUp turns numbers into certificates; none at all is an error.
func lookUp(table []*x509.Certificate, numbers []int) ([]*x509.Certificate, error) {
	if len(numbers) == 0 {
		return nil, errors.New("empty list of certificates")
	}
	out := make([]*x509.Certificate, len(numbers))
	for i, n := range numbers {
		if n < 0 || n >= len(table) {
			return nil, fmt.Errorf("certificate %d of %d", n, len(table))
		}
		out[i] = table[n]
	}
	return out, nil
}
