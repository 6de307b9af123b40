package app

import (
	"context"
	"fmt"
	"time"

	"github.com/culvert-mesh/culvert/pkg/certs"
	"github.com/culvert-mesh/culvert/pkg/certs/caclient"
	"github.com/culvert-mesh/culvert/pkg/certs/selfsigned"
	"github.com/culvert-mesh/culvert/pkg/certs/spire"
	"github.com/culvert-mesh/culvert/pkg/environ"
	"github.com/culvert-mesh/culvert/pkg/logging"
	"github.com/culvert-mesh/culvert/pkg/metrics"
	"github.com/culvert-mesh/culvert/pkg/run"
	"github.com/culvert-mesh/culvert/pkg/workloads"
)

// Identities says where certificates come from and what is asked of peers'. With a
// SPIRE agent no CA is asked.
type Identities struct {
	AdminSocket    string // of the SPIRE agent's Delegated Identity API; "" = a CA issues
	WorkloadSocket string // of its Workload API, for ztunnel's own; "" = delegated, too
	TLS12          bool   // TLS 1.2 is offered as well
	PQC            bool   // only the post-quantum key exchange
	CRLPath        string // file of revocation lists; "" = nothing is revoked
}

func (c *Config) readIdentities(e *environ.Env) {
	c.Identities = Identities{
		AdminSocket:    e.Text("SPIRE_ADMIN_SOCKET", ""),
		WorkloadSocket: e.Text("SPIFFE_ENDPOINT_SOCKET", ""),
		TLS12:          e.Bool("TLS12_ENABLED", false),
		CRLPath:        e.Text("CRL_PATH", ""),
	}
	switch v := e.Text("COMPLIANCE_POLICY", ""); v {
	case "":
	case "pqc":
		c.Identities.PQC = true
	default:
		e.Failf("COMPLIANCE_POLICY", "%q is not known; there is pqc", v)
	}
	switch {
	case c.Identities.AdminSocket != "" && c.FakeCA:
		e.Failf("SPIRE_ADMIN_SOCKET", "is set beside FAKE_CA=true; certificates come from one of them")
	case c.Identities.AdminSocket == "" && c.CA.Address == "" && !c.FakeCA:
		e.Failf("CA_ADDRESS", "is empty; without a CA or SPIRE there are no identities (FAKE_CA=true is for tests)")
	}
}

func (a *App) buildCerts() error {
	a.buildProfile()
	issuer, err := a.issuer()
	if err != nil {
		return err
	}
	a.certs = certs.NewCache(issuer, certs.CacheConfig{
		Log:    logging.Scope(a.log, "certs"),
		Issued: metrics.NewCertificates(a.registry).Issued,
	})
	metrics.CertificateExpiry(a.registry, a.certs.Expirations)
	a.prefetch = newPrefetch(a.store, a.certs, a.cfg.NodeName)
	a.names = workloads.NewNames(a.store)
	return nil
}

// buildProfile makes what all TLS connections have in common.
func (a *App) buildProfile() {
	c := a.cfg.Identities
	a.tls = certs.Profile{TLS12: c.TLS12, PQC: c.PQC}
	if c.CRLPath == "" {
		return
	}
	m := metrics.NewRevocations(a.registry)
	a.tls.Revoked = certs.NewRevocations(certs.RevocationConfig{
		Path:      c.CRLPath,
		Log:       logging.Scope(a.log, "certs"),
		Rejected:  func(d certs.Direction) { m.Rejected(string(d)) },
		Untracked: func(d certs.Direction) { m.Untracked(string(d)) },
		Loaded:    m.Loaded,
	})
	// Before the first connection, as far as the file is there. What is wrong with
	// it is logged, and no reason not to serve: it would not end us later either.
	_ = a.tls.Revoked.Load()
}

func (a *App) issuer() (certs.Issuer, error) {
	c := a.cfg
	switch {
	case c.FakeCA:
		return selfsigned.Fixed(selfsigned.WithTTL(c.SecretTTL), selfsigned.WithLog(logging.Scope(a.log, "certs"))), nil
	case c.Identities.AdminSocket != "":
		return a.spireIssuer()
	}
	client, err := caclient.New(caclient.Config{
		Address:     c.CA.Address,
		Roots:       c.CA.Pool,
		AltHostname: c.CA.AltName,
		TLS:         a.tls,
		Token:       c.Token.Read,
		ClusterID:   string(c.Cluster),
		Headers:     c.CA.Headers,
		TTL:         c.SecretTTL,
		Impersonate: !c.dedicated(),
	})
	if err != nil {
		return nil, fmt.Errorf("CA_ADDRESS: %w", err)
	}
	a.closeCA = client.Close
	if file, ok := c.CA.RootsFile(); ok {
		a.followCA = func(ctx context.Context) error {
			return certs.WatchFile(ctx, file, rootsSettle, func() { a.reconnectCA(client) })
		}
	}
	return client, nil
}

// rootsSettle is how long the CA's root file must be quiet before it is used.
const rootsSettle = 2 * time.Second

// reconnectCA makes the next request prove the CA by the roots of now, if those
// are others than before.
func (a *App) reconnectCA(client *caclient.Client) {
	changed, err := client.Reconnect()
	switch {
	case err != nil:
		a.log.Warn("roots of the CA not read", "error", err)
	case changed:
		a.log.Info("roots of the CA have changed")
	}
}

func (a *App) spireIssuer() (certs.Issuer, error) {
	_, own, _ := a.cfg.Own()
	issuer, err := spire.New(spire.Config{
		AdminSocket:    a.cfg.Identities.AdminSocket,
		WorkloadSocket: a.cfg.Identities.WorkloadSocket,
		Own:            own,
		Log:            logging.Scope(a.log, "certs"),
	})
	if err != nil {
		return nil, fmt.Errorf("SPIRE_ADMIN_SOCKET: %w", err)
	}
	a.closeCA, a.followCA = issuer.Close, issuer.Run
	return issuer, nil
}

// addIdentity adds what keeps certificates and revocations current.
func (a *App) addIdentity(g *run.Group) {
	g.Add("certificates", a.certs.Run)
	if a.followCA != nil {
		g.Add("certificate authority", a.followCA)
	}
	if r := a.tls.Revoked; r != nil {
		g.Add("revocation lists", r.Run)
		g.Add("revocations", a.node.Revoke)
	}
}
