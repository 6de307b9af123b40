package certs

import (
	"context"
	"log/slog"
	"time"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// Priority orders requests that wait for a signing call.
type Priority uint8

// From the least urgent: renewals, pods that will come, connections that wait.
const (
	Background Priority = iota
	Warmup
	RealTime
)

// CacheConfig configures a Cache. The zero value is usable.
type CacheConfig struct {
	MaxConcurrent int           // signing calls at once; 0 = 8
	CallTimeout   time.Duration // for one signing call; 0 = 10 s
	MinBackoff    time.Duration // after the first failure; 0 = 1 s
	MaxBackoff    time.Duration // 0 = 150 s
	Log           *slog.Logger  // nil = none
	// Issued, when set, is told of every signing call: metrics.
	Issued func(id mesh.Identity, took time.Duration, err error)
}

// Cache is a Source that asks an Issuer.
type Cache struct{ cfg CacheConfig }

// NewCache returns an empty cache; it asks nobody before Run.
func NewCache(issuer Issuer, cfg CacheConfig) *Cache { panic("skeleton") }

// Run makes the signing calls until ctx ends.
func (c *Cache) Run(ctx context.Context) error { panic("skeleton") }

// Certificate implements Source.
func (c *Cache) Certificate(ctx context.Context, id mesh.Identity) (*SVID, error) { panic("skeleton") }

// Prefetch fetches and keeps renewed the certificate of an identity that will be
// needed, until Forget.
func (c *Cache) Prefetch(id mesh.Identity) {}

// Forget drops the certificate of an identity that is no longer needed.
func (c *Cache) Forget(id mesh.Identity) {}

// Snapshot describes every certificate, sorted by identity, in the shape that
// istioctl reads from a config dump.
func (c *Cache) Snapshot() []Status { panic("skeleton") }

// Status is one identity's entry in a config dump.
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
	ValidFrom      string `json:"validFrom"`
	ExpirationTime string `json:"expirationTime"`
}

// Certificate implements Source.
func (f Fixed) Certificate(_ context.Context, id mesh.Identity) (*SVID, error) { panic("skeleton") }
