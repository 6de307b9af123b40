package app

import (
	"strings"
	"testing"
)

func TestConfigIdentities(t *testing.T) {
	t.Parallel()
	c := parse(t, "SPIRE_ADMIN_SOCKET=/run/spire/admin.sock", "SPIFFE_ENDPOINT_SOCKET=unix:///run/spire/api.sock", "CA_ADDRESS=",
		"TLS12_ENABLED=true", "CRL_PATH=/etc/crl/ca-crl.pem")
	want := Identities{AdminSocket: "/run/spire/admin.sock", WorkloadSocket: "unix:///run/spire/api.sock", TLS12: true, CRLPath: "/etc/crl/ca-crl.pem"}
	if c.Identities != want {
		t.Errorf("%+v", c.Identities)
	}
	if c := parse(t, "COMPLIANCE_POLICY=pqc"); !c.Identities.PQC {
		t.Errorf("%+v", c.Identities)
	}
	if c := parse(t); c.Identities != (Identities{}) {
		t.Errorf("by default %+v", c.Identities)
	}
	for _, bad := range [][]string{
		{"COMPLIANCE_POLICY=fips-140-2"},
		{"CA_ADDRESS="},
		{"SPIRE_ADMIN_SOCKET=/s", "FAKE_CA=true"},
	} {
		name, _, _ := strings.Cut(bad[0], "=")
		if _, err := ParseConfig(bad); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%v: error %v does not name %s", bad, err, name)
		}
	}
}
