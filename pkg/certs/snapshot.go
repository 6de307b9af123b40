package certs

import (
	"crypto/x509"
	"encoding/base64"
	"sort"
	"time"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// Status is one identity's entry in a config dump, in the shape that istioctl
// ztunnel-config certificate reads.
type Status struct {
	Identity  string       `json:"identity"`
	State     string       `json:"state"` // Initializing, Available, "Unavailable: reason"
	CertChain []CertStatus `json:"certChain"`
	RootCerts []CertStatus `json:"rootCerts"`
}

// CertStatus is one certificate of a Status.
type CertStatus struct {
	PEM            string `json:"pem"` // base64 of the PEM text
	SerialNumber   string `json:"serialNumber"`
	ValidFrom      string `json:"validFrom"` // RFC 3339
	ExpirationTime string `json:"expirationTime"`
}

// Snapshot describes every identity, sorted by name.
func (c *Cache) Snapshot() []Status {
	c.mu.RLock()
	defer c.mu.RUnlock()
	out := make([]Status, 0, len(c.entries))
	for _, e := range c.entries {
		out = append(out, e.status(time.Now()))
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Identity < out[j].Identity })
	return out
}

// Expirations calls yield with every identity that has a certificate and when that
// ends, in no order: metrics.
func (c *Cache) Expirations(yield func(id mesh.Identity, notAfter time.Time) bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	for id, e := range c.entries {
		if e.svid != nil && !yield(id, e.svid.NotAfter) {
			return
		}
	}
}

func (e *entry) status(now time.Time) Status {
	s := Status{Identity: e.id.String(), CertChain: []CertStatus{}, RootCerts: []CertStatus{}}
	if e.svid != nil {
		s.CertChain = statuses(e.svid.Chain)
		s.RootCerts = statuses(e.svid.RootCerts)
	}
	switch {
	case e.valid(now):
		s.State = "Available"
	case e.err != nil:
		s.State = "Unavailable: " + e.err.Error()
	default:
		s.State = "Initializing"
	}
	return s
}

func statuses(list []*x509.Certificate) []CertStatus {
	out := make([]CertStatus, len(list))
	for i, c := range list {
		out[i] = CertStatus{
			PEM:            base64.StdEncoding.EncodeToString(EncodePEM(c)),
			SerialNumber:   c.SerialNumber.String(),
			ValidFrom:      c.NotBefore.UTC().Format(time.RFC3339),
			ExpirationTime: c.NotAfter.UTC().Format(time.RFC3339),
		}
	}
	return out
}
