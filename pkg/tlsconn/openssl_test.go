package tlsconn

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/pkg/hbone/hbonetest"
)

// Against OpenSSL, which sends session tickets, changes keys when told to, and has
// the suites that crypto/tls does not let us choose.
func TestOpenSSL(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("openssl(1), the oracle of this test, is not installed")
	}
	for name, c := range map[string]struct {
		suite string
		layer bool
	}{
		"AES-128":  {"TLS_AES_128_GCM_SHA256", true},
		"AES-256":  {"TLS_AES_256_GCM_SHA384", true},
		"ChaCha20": {"TLS_CHACHA20_POLY1305_SHA256", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ca := hbonetest.NewCA(t)
			addr, in, out := opensslServer(t, ca.Certificate(t, serverID), c.suite)
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			client, err := Client(context.Background(), conn.(*net.TCPConn), ca.Client(t, clientID, serverID))
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			if (client.layer != nil) != c.layer {
				t.Errorf("own layer: %v", client.layer != nil)
			}
			// K in the server's input changes its keys and asks for ours.
			for _, line := range []string{"first", "K", "second"} {
				if _, err := io.WriteString(in, line+"\n"); err != nil {
					t.Fatal(err)
				}
				if line != "K" {
					expect(t, client, line+"\n")
				}
				if _, err := io.WriteString(client, "to the server "+line+"\n"); err != nil {
					t.Fatal(err)
				}
				for !strings.Contains(out.Text(), "to the server "+line) {
					if !out.Scan() {
						t.Fatalf("openssl ended: %v", out.Err())
					}
				}
			}
			n := client.Counts()
			if c.layer && (n.KeyUpdatesReceived != 1 || n.KeyUpdatesSent != 1) {
				t.Errorf("%+v", n)
			}
		})
	}
}

func expect(t *testing.T, r io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(r, got); err != nil || string(got) != want {
		t.Fatalf("read %q, %v; want %q", got, err, want)
	}
}

// opensslServer starts s_server on a port of loopback and returns its address, its
// input and its output.
func opensslServer(t *testing.T, cert tls.Certificate, suite string) (addr string, in io.Writer, out *bufio.Scanner) {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "server.pem")
	text := append(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]})...)
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("openssl", "s_server", "-accept", "127.0.0.1:0", "-naccept", "1", "-cert", file, "-tls1_3",
		"-ciphersuites", suite, "-alpn", "h2")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	out = bufio.NewScanner(stdout)
	for out.Scan() {
		if _, port, ok := strings.Cut(out.Text(), "ACCEPT 127.0.0.1:"); ok {
			return "127.0.0.1:" + port, stdin, out
		}
	}
	t.Fatalf("openssl does not listen: %v", out.Err())
	return "", nil, nil
}
