package app

import (
	"io"
	"math"
	"strings"
	"testing"
	"testing/fstest"
)

func TestScopes(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"info":                        "info",
		"debug,access=off":            "debug,access=off",
		"ztunnel=debug":               "debug",
		"warn,ztunnel::access=trace":  "warn,access=trace",
		"ztunnel::proxy::inbound=err": "inbound=err",
	} {
		if got := scopes(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestMemoryLimit(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		files fstest.MapFS
		want  int64
	}{
		{fstest.MapFS{}, math.MaxInt64},
		{fstest.MapFS{"memory.max": {Data: []byte("max\n")}}, math.MaxInt64},
		{fstest.MapFS{"memory.max": {Data: []byte("1000\n")}}, 900},
		{fstest.MapFS{"memory/memory.limit_in_bytes": {Data: []byte("9223372036854771712\n")}}, math.MaxInt64},
		{fstest.MapFS{"memory/memory.limit_in_bytes": {Data: []byte("2000\n")}}, 1800},
	} {
		if got := memoryLimit(c.files); got != c.want {
			t.Errorf("%v: %d, want %d", c.files, got, c.want)
		}
	}
}

func TestNode(t *testing.T) {
	t.Parallel()
	c := parse(t, "INSTANCE_IP=10.0.0.5", "POD_NAME=ztunnel-x", "POD_NAMESPACE=istio-system", "NODE_NAME=n1", "ISTIO_META_DNS_CAPTURE=true")
	m := nodeMetadata(c)
	for k, want := range map[string]string{"NAME": "ztunnel-x", "NAMESPACE": "istio-system", "NODE_NAME": "n1", "INSTANCE_IPS": "10.0.0.5", "DNS_CAPTURE": "true"} {
		if m[k] != want {
			t.Errorf("metadata %s is %v, want %s", k, m[k], want)
		}
	}
}

func TestUnexpectedArgument(t *testing.T) {
	t.Parallel()
	if err := Main(t.Context(), []string{"--help"}, nil, io.Discard); err == nil || !strings.Contains(err.Error(), "--help") {
		t.Errorf("error %v", err)
	}
}
