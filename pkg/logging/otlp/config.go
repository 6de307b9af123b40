package otlp

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"maps"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlplog/otlploggrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlplog/otlploghttp"
	sdk "go.opentelemetry.io/otel/sdk/log"
	"go.opentelemetry.io/otel/sdk/resource"
	"google.golang.org/grpc/credentials"

	"github.com/culvert-mesh/culvert/pkg/environ"
)

// Config says where records go and what all of them carry.
type Config struct {
	Endpoint    string            // URL of the collector's logs endpoint; "" = none
	GRPC        bool              // else protobuf over HTTP
	Headers     map[string]string // sent with every request
	Gzip        bool
	Timeout     time.Duration // of one request, with its retries
	Certificate string        // file with the roots of the collector's certificate; "" = the system's
	Resource    map[string]string
}

// Enabled reports whether records are to be sent.
func (c Config) Enabled() bool { return c.Endpoint != "" }

// ReadConfig reads OpenTelemetry's own variables, OTEL_EXPORTER_OTLP_* and those of
// the logs signal, which win. resource are the attributes that the program knows of
// itself; OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME win.
func ReadConfig(e *environ.Env, resource map[string]string) Config {
	c := Config{Resource: readResource(e, resource)}
	if e.Text("OTEL_SDK_DISABLED", "") == "true" || e.Text("OTEL_LOGS_EXPORTER", "otlp") == "none" {
		return c
	}
	c.readProtocol(e)
	c.readEndpoint(e)
	if !c.Enabled() {
		return c
	}
	c.Headers = pairs(e, logsName(e, "HEADERS"))
	c.Timeout = time.Duration(e.Integer(logsName(e, "TIMEOUT"), 10_000, 1, 600_000)) * time.Millisecond
	switch name := logsName(e, "COMPRESSION"); e.Text(name, "none") {
	case "none":
	case "gzip":
		c.Gzip = true
	default:
		e.Failf(name, "%q is neither none nor gzip", e.Text(name, ""))
	}
	c.Certificate = e.Text(logsName(e, "CERTIFICATE"), "")
	if c.Certificate != "" {
		if _, err := roots(c.Certificate); err != nil {
			e.Failf(logsName(e, "CERTIFICATE"), "%v", err)
		}
	}
	return c
}

const prefix = "OTEL_EXPORTER_OTLP_"

// logsName returns the variable of the logs signal if it is set, else the one of
// all signals.
func logsName(e *environ.Env, what string) string {
	if e.Text(prefix+"LOGS_"+what, "") != "" {
		return prefix + "LOGS_" + what
	}
	return prefix + what
}

func (c *Config) readProtocol(e *environ.Env) {
	name := logsName(e, "PROTOCOL")
	switch v := e.Text(name, "http/protobuf"); v {
	case "http/protobuf":
	case "grpc":
		c.GRPC = true
	default:
		e.Failf(name, "%q is neither grpc nor http/protobuf", v)
	}
}

// readEndpoint takes the logs endpoint as it is; to the one of all signals HTTP
// adds the path of this one. gRPC endpoints may lack a scheme.
func (c *Config) readEndpoint(e *environ.Env) {
	name := logsName(e, "ENDPOINT")
	text := e.Text(name, "")
	if text == "" {
		return
	}
	if c.GRPC && !strings.Contains(text, "://") {
		text = "https://" + text
		if e.Text(logsName(e, "INSECURE"), "") == "true" {
			text = "http://" + strings.TrimPrefix(text, "https://")
		}
	}
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		e.Failf(name, "%q is no URL with http or https", text)
		return
	}
	if !c.GRPC && name == prefix+"ENDPOINT" {
		u = u.JoinPath("v1/logs")
	}
	c.Endpoint = u.String()
}

func readResource(e *environ.Env, known map[string]string) map[string]string {
	out := map[string]string{}
	for k, v := range known {
		if v != "" {
			out[k] = v
		}
	}
	maps.Copy(out, pairs(e, "OTEL_RESOURCE_ATTRIBUTES"))
	if name := e.Text("OTEL_SERVICE_NAME", ""); name != "" {
		out["service.name"] = name
	}
	return out
}

// pairs parses "key=value,key=value", where values may be percent-encoded.
func pairs(e *environ.Env, name string) map[string]string {
	out := map[string]string{}
	for item := range strings.SplitSeq(e.Text(name, ""), ",") {
		if strings.TrimSpace(item) == "" {
			continue
		}
		key, value, ok := strings.Cut(item, "=")
		key = strings.TrimSpace(key)
		decoded, err := url.PathUnescape(strings.TrimSpace(value))
		if !ok || key == "" || err != nil {
			e.Failf(name, "%q is no key=value", item)
			continue
		}
		out[key] = decoded
	}
	return out
}

func (c Config) resource() *resource.Resource {
	var attrs []attribute.KeyValue
	for _, k := range slices.Sorted(maps.Keys(c.Resource)) {
		attrs = append(attrs, attribute.String(k, c.Resource[k]))
	}
	return resource.NewSchemaless(attrs...)
}

func roots(file string) (*x509.CertPool, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s holds no certificate", file)
	}
	return pool, nil
}

// tls returns the client's settings; nil without TLS.
func (c Config) tls() (*tls.Config, error) {
	if !strings.HasPrefix(c.Endpoint, "https://") {
		return nil, nil
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.Certificate == "" {
		return t, nil
	}
	var err error
	t.RootCAs, err = roots(c.Certificate)
	return t, err
}

// newExporter makes the client. Retries stay well below the timeout of a request,
// so that a collector that is away costs what waits, not what comes.
func newExporter(c Config) (sdk.Exporter, error) {
	t, err := c.tls()
	if err != nil {
		return nil, err
	}
	timeout := c.Timeout
	if c.GRPC {
		opts := []otlploggrpc.Option{
			otlploggrpc.WithEndpointURL(c.Endpoint), otlploggrpc.WithHeaders(c.Headers), otlploggrpc.WithTimeout(timeout),
			otlploggrpc.WithRetry(otlploggrpc.RetryConfig{Enabled: true, InitialInterval: time.Second, MaxInterval: 5 * time.Second, MaxElapsedTime: timeout}),
		}
		if t != nil {
			opts = append(opts, otlploggrpc.WithTLSCredentials(credentials.NewTLS(t)))
		}
		if c.Gzip {
			opts = append(opts, otlploggrpc.WithCompressor("gzip"))
		}
		return otlploggrpc.New(context.Background(), opts...)
	}
	opts := []otlploghttp.Option{
		otlploghttp.WithEndpointURL(c.Endpoint), otlploghttp.WithHeaders(c.Headers), otlploghttp.WithTimeout(timeout),
		otlploghttp.WithRetry(otlploghttp.RetryConfig{Enabled: true, InitialInterval: time.Second, MaxInterval: 5 * time.Second, MaxElapsedTime: timeout}),
	}
	if t != nil {
		opts = append(opts, otlploghttp.WithTLSClientConfig(t))
	}
	if c.Gzip {
		opts = append(opts, otlploghttp.WithCompression(otlploghttp.GzipCompression))
	}
	return otlploghttp.New(context.Background(), opts...)
}
