package certs_test

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/pkg/certs"
	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/reason"
)

// foreignPeer is how another program's TLS stack may be set up. It checks chains as
// crypto/tls does by itself.
func foreignPeer(svid *certs.SVID) *tls.Config {
	return &tls.Config{
		Certificates:       []tls.Certificate{svid.Leaf},
		ClientAuth:         tls.RequireAnyClientCert,
		InsecureSkipVerify: true,
		NextProtos:         []string{"h2"},
		ClientSessionCache: tls.NewLRUClientSessionCache(4),
	}
}

// overTCP joins both and returns the first error that carries a reason. Unlike
// shake's pipe, TCP lets both sides speak at the same time, as they do when they
// fail.
func overTCP(t *testing.T, client, server *tls.Config) error {
	t.Helper()
	_, _, clientErr, serverErr := handshake(t, client, server)
	if r := reason.Of(serverErr); r != reason.None && r != reason.Internal || clientErr == nil {
		return serverErr
	}
	return clientErr
}

// TestKeyExchangesAndSuites: what a peer of one version, one key exchange or one
// cipher suite gets from each Profile.
func TestKeyExchangesAndSuites(t *testing.T) {
	t.Parallel()
	ca := newCA(t, "root", nil)
	ecdsa, rsa := newKey(t), rsaKey(t)
	plain, tls12, pqc := certs.Profile{}, certs.Profile{TLS12: true}, certs.Profile{PQC: true, TLS12: true}
	curve := func(id tls.CurveID) func(*tls.Config) {
		return func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{id} }
	}
	old := func(suites ...uint16) func(*tls.Config) {
		return func(c *tls.Config) {
			c.MaxVersion, c.MinVersion, c.CipherSuites = tls.VersionTLS12, tls.VersionTLS12, suites
		}
	}
	for name, test := range map[string]struct {
		key    crypto.Signer // of our certificate
		peer   func(*tls.Config)
		accept []certs.Profile
		refuse []certs.Profile
	}{
		"default":        {ecdsa, func(*tls.Config) {}, []certs.Profile{plain, tls12, pqc}, nil},
		"X25519MLKEM768": {ecdsa, curve(tls.X25519MLKEM768), []certs.Profile{plain, tls12, pqc}, nil},
		"X25519":         {ecdsa, curve(tls.X25519), []certs.Profile{plain, tls12}, []certs.Profile{pqc}},
		"P-256":          {ecdsa, curve(tls.CurveP256), []certs.Profile{plain, tls12}, []certs.Profile{pqc}},
		"P-384":          {ecdsa, curve(tls.CurveP384), []certs.Profile{plain, tls12}, []certs.Profile{pqc}},
		"P-521":          {ecdsa, curve(tls.CurveP521), nil, []certs.Profile{plain, tls12, pqc}},
		"P-256 hybrid":   {ecdsa, curve(tls.SecP256r1MLKEM768), nil, []certs.Profile{plain, tls12, pqc}},

		"1.2 ECDSA AES-128": {ecdsa, old(tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256), []certs.Profile{tls12}, []certs.Profile{plain, pqc}},
		"1.2 ECDSA AES-256": {ecdsa, old(tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384), []certs.Profile{tls12}, []certs.Profile{plain, pqc}},
		"1.2 RSA AES-128":   {rsa, old(tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256), []certs.Profile{tls12}, []certs.Profile{plain, pqc}},
		"1.2 RSA AES-256":   {rsa, old(tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384), []certs.Profile{tls12}, []certs.Profile{plain, pqc}},
		"1.2 ChaCha":        {ecdsa, old(tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256), nil, []certs.Profile{plain, tls12, pqc}},
		"1.2 CBC":           {ecdsa, old(tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA), nil, []certs.Profile{plain, tls12, pqc}},
		"1.2 without ECDHE": {rsa, old(tls.TLS_RSA_WITH_AES_128_GCM_SHA256), nil, []certs.Profile{plain, tls12, pqc}},
		"1.1": {ecdsa, func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS11, tls.VersionTLS11 },
			nil, []certs.Profile{plain, tls12, pqc}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			us, them := ca.svidFor(t, test.key, identity("frontend")), ca.svidFor(t, test.key, identity("cart"))
			src := certs.Fixed{us.ID: us}
			for i, profile := range append(test.accept, test.refuse...) {
				client, err := profile.Client(context.Background(), src, us.ID, []mesh.Identity{them.ID})
				if err != nil {
					t.Fatal(err)
				}
				server, err := profile.Server(context.Background(), src, us.ID, certs.ServerOptions{})
				if err != nil {
					t.Fatal(err)
				}
				peer := foreignPeer(them)
				test.peer(peer)
				good := i < len(test.accept)
				if err := overTCP(t, client, peer); (err == nil) != good {
					t.Errorf("%+v as client: %v, want success %v", profile, err, good)
				}
				if err := overTCP(t, peer, server); (err == nil) != good {
					t.Errorf("%+v as server: %v, want success %v", profile, err, good)
				}
			}
		})
	}
}

// TestNeverResumed: a client that keeps sessions, and a server that offers them,
// get a full handshake from us each time.
func TestNeverResumed(t *testing.T) {
	t.Parallel()
	ca := newCA(t, "root", nil)
	us, them := ca.svid(t, identity("frontend")), ca.svid(t, identity("cart"))
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		profile := certs.Profile{TLS12: true}
		peer := foreignPeer(them)
		peer.MaxVersion = version
		peer.ServerName = "cart" // the key of its session cache
		for range 3 {
			server, err := profile.Server(context.Background(), certs.Fixed{us.ID: us}, us.ID, certs.ServerOptions{})
			if err != nil {
				t.Fatal(err)
			}
			client, err := profile.Client(context.Background(), certs.Fixed{us.ID: us}, us.ID, []mesh.Identity{them.ID})
			if err != nil {
				t.Fatal(err)
			}
			for who, pair := range map[string][2]*tls.Config{"server": {peer, server}, "client": {client, peer}} {
				c, _, clientErr, serverErr := handshake(t, pair[0], pair[1])
				if clientErr != nil || serverErr != nil || c.DidResume || c.Version != version {
					t.Errorf("we as %s, version %x: resumed %v, %v, %v", who, c.Version, c.DidResume, clientErr, serverErr)
				}
			}
		}
	}
}

// TestFederation: an authority vouches for its own trust domain, and for no other.
func TestFederation(t *testing.T) {
	t.Parallel()
	home, away, far := newCA(t, "home", nil), newCA(t, "away", nil), newCA(t, "far", nil)
	in := func(td string) mesh.Identity {
		return mesh.Identity{TrustDomain: td, Namespace: "shop", ServiceAccount: "frontend"}
	}
	cart := identity("cart")
	// make is an SVID of ids by ca, whose holder trusts everybody.
	make := func(ca *testCA, ids ...mesh.Identity) *certs.SVID {
		key := newKey(t)
		roots := []*x509.Certificate{home.cert, away.cert, far.cert}
		svid, err := certs.NewSVID(ids[0], key, ca.chain(ca.leaf(t, key, ids...)), roots,
			map[string][]*x509.Certificate{"cluster.local": roots, "away.local": roots, "far.local": roots})
		if err != nil {
			t.Fatal(err)
		}
		return svid
	}
	key := newKey(t)
	server, err := certs.NewSVID(cart, key, home.chain(home.leaf(t, key, cart)), []*x509.Certificate{home.cert},
		map[string][]*x509.Certificate{"away.local": {away.cert}})
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		peer *certs.SVID
		want reason.Reason
		text string
	}{
		"own domain":                  {make(home, in("cluster.local")), reason.None, ""},
		"federated":                   {make(away, in("away.local")), reason.None, ""},
		"federated claims ours":       {make(away, in("cluster.local")), reason.TLSFailure, "unknown authority"},
		"ours claims federated":       {make(home, in("away.local")), reason.TLSFailure, "unknown authority"},
		"not federated":               {make(far, in("far.local")), reason.TrustDomain, "does not federate with trust domain far.local"},
		"ours claims another":         {make(home, in("far.local")), reason.TrustDomain, "does not federate"},
		"two identities":              {make(away, in("away.local"), in("cluster.local")), reason.TrustDomain, "2 URIs"},
		"federated, with ours behind": {make(home, in("cluster.local"), in("away.local")), reason.TrustDomain, "2 URIs"},
	} {
		src := certs.Fixed{test.peer.ID: test.peer, cart: server}
		if test.peer.ID == cart {
			t.Fatal("the peers must differ")
		}
		join := func(client, server *certs.SVID) error {
			c, s := profiled(t, certs.Profile{}, certs.Profile{}, src, client, server)
			return overTCP(t, c, s)
		}
		for who, err := range map[string]error{
			"as server": join(test.peer, server),
			"as client": join(server, test.peer),
		} {
			if reason.Of(err) != test.want || test.text != "" && !strings.Contains(err.Error(), test.text) {
				t.Errorf("%s, %s: %v, want %q %q", name, who, err, test.want, test.text)
			}
		}
	}
}

// Where only the post-quantum key exchange will do, TLS 1.2 is not even offered.
func TestPQCWithoutTLS12(t *testing.T) {
	t.Parallel()
	var cfg tls.Config
	certs.Profile{TLS12: true, PQC: true}.Limit(&cfg)
	if cfg.MinVersion != tls.VersionTLS13 {
		t.Errorf("lowest version %x", cfg.MinVersion)
	}
}
