package integration

import (
	"encoding/json"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/pkg/certs/selfsigned"
)

// TestRevocation: a certificate is revoked under a tunnel that is open. It ends by
// the side that knows of the revocation, whichever that is, and no new one opens
// until the certificate is good again. The side that was told is the client's in
// one run and the server's in the other.
func TestRevocation(t *testing.T) {
	t.Parallel()
	for _, side := range []string{"client", "server"} {
		t.Run(side, func(t *testing.T) {
			t.Parallel()
			f := newField(t)
			client, server := f.pod("client", "node-1"), f.pod("server", "node-2")
			server.listen(t, 7000, echo)
			crl := filepath.Join(f.dir, "ca-crl.pem")
			revoke(t, crl)
			var env1, env2 []string
			if side == "client" {
				env1 = []string{"CRL_PATH=" + crl}
			} else {
				env2 = []string{"CRL_PATH=" + crl}
			}
			z1 := f.ztunnel("node-1", f.agent("node-1", client), nil, env1...)
			z2 := f.ztunnel("node-2", f.agent("node-2", server), nil, env2...)
			knows, peers, reporter := z1, z2, "source"
			victim := "spiffe://cluster.local/ns/default/sa/server"
			if side == "server" {
				knows, peers, reporter = z2, z1, "destination"
				victim = "spiffe://cluster.local/ns/default/sa/client"
			}
			client.exchange(t, server.IP4, 7000)

			open := client.dial(t, server.IP4, 7000)
			readLine(t, open)
			revoke(t, crl, peers.held(victim))
			open.SetReadDeadline(time.Now().Add(patience))
			if _, err := open.Read(make([]byte, 1)); err == nil || isTimeout(err) {
				t.Fatalf("the open connection: %v, want its end", err)
			}
			knows.wantLog(`connection complete.*peer certificate revoked.*`)
			client.wantReset(t, server.IP4, 7000)
			knows.until("a second rejection", func() bool {
				return knows.metric("istio_crl_policy_rejections_total", `reporter="`+reporter+`"`) >= 2
			})
			knows.until("the failure in the metrics", func() bool {
				return knows.metric("istio_tcp_connections_failed_total", `response_flags="CERT_REVOKED"`) >= 1
			})

			revoke(t, crl)
			knows.until("the certificate to be good again", func() bool { return tryExchange(client, server.IP4, 7000) == nil })
		})
	}
}

func readLine(t *testing.T, c *net.TCPConn) {
	t.Helper()
	for b := make([]byte, 1); b[0] != '\n'; {
		if _, err := io.ReadFull(c, b); err != nil {
			t.Fatal(err)
		}
	}
}

// held returns the serial number of the certificate that the ztunnel has for an
// identity.
func (z *ztunnel) held(identity string) *big.Int {
	z.t.Helper()
	var dump struct {
		Certificates []struct {
			Identity  string
			CertChain []struct{ SerialNumber string }
		}
	}
	if err := json.Unmarshal([]byte(z.get("http://127.0.0.1:15000/config_dump")), &dump); err != nil {
		z.t.Fatal(err)
	}
	for _, c := range dump.Certificates {
		if n, ok := new(big.Int).SetString(c.CertChain[0].SerialNumber, 10); ok && c.Identity == identity {
			return n
		}
	}
	z.t.Fatalf("no certificate of %s", identity)
	return nil
}

// revoke replaces the revocation list of the test authority.
func revoke(t *testing.T, path string, serials ...*big.Int) {
	t.Helper()
	text, err := selfsigned.Fixed().RevocationList(time.Hour, serials...)
	if err == nil {
		err = os.WriteFile(path+".new", text, 0o600)
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		t.Fatal(err)
	}
}
