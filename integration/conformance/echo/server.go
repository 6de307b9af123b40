package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/big"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// list is a flag that may be given more than once.
type list []string

func (l *list) String() string { return strings.Join(*l, ",") }

// Set adds a value.
func (l *list) Set(v string) error {
	*l = append(*l, v)
	return nil
}

// serve listens on all ports and ends with the first that fails.
func serve(args []string) error {
	flags := flag.NewFlagSet("echo", flag.ContinueOnError)
	var plain, secure, calls, raw list
	flags.Var(&plain, "port", "port of HTTP")
	flags.Var(&secure, "tls", "which of them are of HTTPS")
	flags.Var(&calls, "grpc", "port of gRPC")
	flags.Var(&raw, "tcp", "port of TCP")
	crt := flags.String("crt", "", "certificate's file")
	key := flags.String("key", "", "its key's file")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if len(plain)+len(calls)+len(raw) == 0 {
		plain = list{"8080"} // of the suite's workloads, some only call
	}
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	certificate, err := loadOrMake(*crt, *key)
	if err != nil {
		return err
	}
	failed := make(chan error)
	listen := func(port string, serve func(net.Listener) error) {
		l, err := net.Listen("tcp", ":"+port)
		if err == nil {
			err = serve(l)
		}
		failed <- fmt.Errorf("port %s: %w", port, err)
	}
	for _, port := range plain {
		go listen(port, func(l net.Listener) error {
			if slices.Contains(secure, port) {
				return httpServer(host, port, certificate).ServeTLS(l, "", "")
			}
			return httpServer(host, port, certificate).Serve(l)
		})
	}
	for _, port := range calls {
		go listen(port, grpcServer(host, port).Serve)
	}
	for _, port := range raw {
		go listen(port, func(l net.Listener) error { return echoTCP(l, host, port) })
	}
	return <-failed
}

// loadOrMake reads a certificate, or makes one when its files are not there.
func loadOrMake(crt, key string) (tls.Certificate, error) {
	found, err := tls.LoadX509KeyPair(crt, key)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return found, err
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"echo"}, NotAfter: time.Now().AddDate(1, 0, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}, err
}

func httpServer(host, port string, certificate tls.Certificate) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Protocols: protocols,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate}},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/plain")
			facts := facts{
				{"ServicePort", port}, {"Host", r.Host}, {"URL", r.URL.String()}, {"Method", r.Method}, {"Proto", r.Proto}, {"IP", ipOf(r.RemoteAddr)},
			}
			if r.TLS != nil {
				facts = append(facts, fact{"Alpn", r.TLS.NegotiatedProtocol}, fact{"ServerName", r.TLS.ServerName})
			}
			io.WriteString(w, append(facts, headers(r.Header)...).end(host))
		}),
	}
}

// grpcServer serves the one method of the suite's service. Its messages have one
// field, a text, with the number 1: the form of a wrapped text.
func grpcServer(host, port string) *grpc.Server {
	answer := func(ctx context.Context) *wrapperspb.StringValue {
		facts := facts{{"StatusCode", "200"}, {"ServicePort", port}, {"Proto", "GRPC"}}
		if p, ok := peer.FromContext(ctx); ok {
			facts = append(facts, fact{"IP", ipOf(p.Addr.String())})
		}
		if md, ok := metadata.FromIncomingContext(ctx); ok {
			facts = append(facts, fact{"Host", strings.Join(md.Get(":authority"), ",")})
			facts = append(facts, headers(md)...)
		}
		return wrapperspb.String(facts.end(host))
	}
	s := grpc.NewServer()
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: grpcService, HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: grpcMethod,
			Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
				if err := decode(new(wrapperspb.StringValue)); err != nil {
					return nil, err
				}
				return answer(ctx), nil
			}}},
	}, nil)
	return s
}

const (
	grpcService = "proto.EchoTestService"
	grpcMethod  = "Echo"
)

// echoTCP greets with who it is, and sends back what it gets.
func echoTCP(l net.Listener, host, port string) error {
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			said := facts{{"StatusCode", "200"}, {"ServicePort", port}, {"Proto", "TCP"}, {"IP", ipOf(conn.RemoteAddr().String())}}.end(host)
			if _, err := io.WriteString(conn, said); err == nil {
				io.Copy(conn, conn)
			}
		}()
	}
}

func ipOf(address string) string {
	ip, _, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	return ip
}

// fact is a line of an answer.
type fact struct{ key, value string }

type facts []fact

// end returns the lines of an answer of a host.
func (f facts) end(host string) string {
	var b strings.Builder
	for _, each := range append(f, fact{"Hostname", host}) {
		fmt.Fprintf(&b, "%s=%s\n", each.key, each.value)
	}
	return b.String()
}

func headers(of map[string][]string) (found facts) {
	for _, name := range slices.Sorted(maps.Keys(of)) {
		for _, value := range of[name] {
			found = append(found, fact{"RequestHeader", name + ":" + value})
		}
	}
	return found
}
