package token

import "testing"

func TestTokensStaySecret(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		tls  bool
		host string
		want bool
	}{
		{true, "istiod.istio-system.svc", true},
		{true, "10.0.0.1", true},
		{false, "127.0.0.1", true},
		{false, "127.8.0.1", true},
		{false, "::1", true},
		{false, "::ffff:127.0.0.1", true},
		{false, "localhost", true},
		{false, "istiod.istio-system.svc", false},
		{false, "localhost.evil.example", false},
		{false, "10.0.0.1", false},
		{false, "0.0.0.0", false},
		{false, "", false},
	} {
		if got := MaySend(c.tls, c.host); got != c.want {
			t.Errorf("MaySend(%v, %q) = %v", c.tls, c.host, got)
		}
	}
}
