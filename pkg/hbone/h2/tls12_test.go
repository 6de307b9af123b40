package h2

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"io"
	"math/rand/v2"
	"net"
	"testing"

	"github.com/culvert-mesh/culvert/pkg/hbone"
)

// TestTLS12 carries bulk both ways over a connection of TLS 1.2, whose records are
// laid out otherwise than those of 1.3.
func TestTLS12(t *testing.T) {
	t.Parallel()
	for _, suite := range []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384} {
		t.Run(tls.CipherSuiteName(suite), func(t *testing.T) {
			t.Parallel()
			m := newMesh(t, pumpTo, func(pc *PoolConfig, sc *ServerConfig) {
				client, server := pc.TLS, sc.TLS
				old := func(cfg *tls.Config, err error) (*tls.Config, error) {
					if err == nil {
						cfg = cfg.Clone()
						cfg.MinVersion, cfg.MaxVersion, cfg.CipherSuites = tls.VersionTLS12, tls.VersionTLS12, []uint16{suite}
					}
					return cfg, err
				}
				pc.TLS = func(ctx context.Context, to hbone.Peer) (*tls.Config, error) { return old(client(ctx, to)) }
				sc.TLS = func(ctx context.Context) (*tls.Config, error) { return old(server(ctx)) }
			})
			target := app(t, func(c *net.TCPConn) {
				_, _ = io.Copy(c, c)
				_ = c.CloseWrite()
			})
			s := m.open(t, target)
			defer s.Close()
			const size = 4 << 20
			sent, got := sha256.New(), sha256.New()
			done := make(chan error, 1)
			go func() {
				_, err := io.CopyN(io.MultiWriter(s, sent), rand.NewChaCha8([32]byte{}), size)
				if err == nil {
					err = s.CloseWrite()
				}
				done <- err
			}()
			n, err := io.Copy(got, s)
			if sendErr := <-done; err != nil || sendErr != nil || n != size {
				t.Fatalf("%d of %d bytes came back, %v, %v", n, size, err, sendErr)
			}
			if [32]byte(sent.Sum(nil)) != [32]byte(got.Sum(nil)) {
				t.Error("other bytes came back")
			}
		})
	}
}
