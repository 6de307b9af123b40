package proxy

import (
	"bytes"
	"context"
	stdhttp "net/http"
	"strconv"

	"github.com/culvert-mesh/culvert/waypoint/http"
	"github.com/culvert-mesh/culvert/waypoint/http/h2"
	"github.com/culvert-mesh/culvert/waypoint/listener"
)

// serveHTTP2 serves a client's connection that carries many requests at once. Each
// is a session of its own, and goes to its endpoint in HTTP/2 as well.
func (p *Proxy) serveHTTP2(ctx context.Context, c *listener.Conn) {
	srv := h2.NewServer(c.Stream, c.First, c.Local, c.Source, p.cfg.HTTP, func(st *h2.Stream) { p.stream(ctx, c, st) })
	c.First = nil
	p.mu.Lock()
	p.multi[srv] = struct{}{}
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.multi, srv)
	}()
	if p.draining.Load() {
		srv.Drain()
	}
	srv.Serve(ctx)
}

// stream serves one request.
func (p *Proxy) stream(ctx context.Context, c *listener.Conn, st *h2.Stream) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(st.Context(), cancel)() // the client has left
	s := &session{p: p, ctx: ctx, cancel: cancel, conn: c, down: st, srv: st, uri: []byte(c.Identity.String())}
	s.watch.init(s, nil)
	stop := context.AfterFunc(ctx, s.abort)
	defer stop()
	s.next()
	if s.dead {
		st.Reset()
	}
}

// grpc reports whether the request is gRPC's.
func (s *session) grpc() bool {
	kind, _ := s.req.Header.Get("content-type")
	rest, ok := bytes.CutPrefix(kind, []byte("application/grpc"))
	return ok && s.req.Version == http.HTTP2 && (len(rest) == 0 || rest[0] == '+' || rest[0] == ';')
}

// writeGRPC turns an answer of our own into one that gRPC's clients understand: the
// status is in a field, and the HTTP status is 200 (PROTOCOL-HTTP2.md, "Responses").
func (s *session) writeGRPC(status int, body []byte) (int, []byte) {
	s.resp.Header.Set("content-type", "application/grpc")
	s.resp.Header.Set("grpc-status", strconv.Itoa(grpcCode(status)))
	if len(body) > 0 {
		s.resp.Header.Set("grpc-message", percentEncoded(body))
	}
	return stdhttp.StatusOK, nil
}

// grpcCode is what gRPC makes of an HTTP status (http-grpc-status-mapping.md).
func grpcCode(status int) int {
	const (
		unknown          = 2
		permissionDenied = 7
		unimplemented    = 12
		internal         = 13
		unavailable      = 14
		unauthenticated  = 16
	)
	switch status {
	case stdhttp.StatusBadRequest:
		return internal
	case stdhttp.StatusUnauthorized:
		return unauthenticated
	case stdhttp.StatusForbidden:
		return permissionDenied
	case stdhttp.StatusNotFound:
		return unimplemented
	case stdhttp.StatusTooManyRequests, stdhttp.StatusBadGateway, stdhttp.StatusServiceUnavailable, stdhttp.StatusGatewayTimeout:
		return unavailable
	}
	return unknown
}

// percentEncoded is how gRPC writes a message into a field.
func percentEncoded(text []byte) string {
	const hex = "0123456789ABCDEF"
	out := make([]byte, 0, len(text))
	for _, c := range text {
		if c < ' ' || c > '~' || c == '%' {
			out = append(out, '%', hex[c>>4], hex[c&15])
			continue
		}
		out = append(out, c)
	}
	return string(out)
}

// grpcStatus is the status that a gRPC request ended with, "" for any other. An
// answer that broke off has none of its own: it counts as UNAVAILABLE.
func (s *session) grpcStatus() string {
	if !s.grpc() {
		return ""
	}
	code, ok := s.resp.Trailer.Get("grpc-status")
	if !ok {
		if code, ok = s.resp.Header.Get("grpc-status"); !ok {
			return strconv.Itoa(grpcCode(stdhttp.StatusServiceUnavailable))
		}
	}
	if n, err := strconv.ParseUint(string(code), 10, 8); err != nil || n > 16 {
		return "2" // a label must not be whatever an endpoint writes
	}
	return string(code)
}
