package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// requestLimit is how long one request may take.
const requestLimit = 5 * time.Second

// request is what the client is told to do.
type request struct {
	target *url.URL
	method string
	host   string // instead of the target's
	header http.Header
	count  int
}

// parse reads the client's arguments: a URL, and flags before and after it.
func parse(args []string) (request, error) {
	flags := flag.NewFlagSet("client", flag.ContinueOnError)
	r := request{header: http.Header{}}
	var lines list
	flags.StringVar(&r.method, "method", http.MethodGet, "method of HTTP")
	flags.IntVar(&r.count, "count", 1, "how many requests to make, one after the other")
	flags.Var(&lines, "H", "header, as NAME:VALUE")
	var targets []string
	for rest := args; len(rest) > 0; rest = flags.Args() {
		if !strings.HasPrefix(rest[0], "-") {
			targets, rest = append(targets, rest[0]), rest[1:]
		}
		if err := flags.Parse(rest); err != nil {
			return r, err
		}
	}
	if len(targets) != 1 {
		return r, fmt.Errorf("one URL is wanted, not %q", targets)
	}
	for _, line := range lines {
		name, value, _ := strings.Cut(line, ":")
		if value = strings.TrimSpace(value); strings.EqualFold(name, "Host") {
			r.host = value
			continue
		}
		r.header[name] = append(r.header[name], value) // as it is written
	}
	var err error
	r.target, err = url.Parse(targets[0])
	return r, err
}

// call makes the requests and prints what came back.
func call(args []string, out io.Writer) error {
	r, err := parse(args)
	if err != nil {
		return err
	}
	var one func(context.Context) (facts, string, error)
	switch r.target.Scheme {
	case "http", "https":
		one = r.overHTTP()
	case "grpc":
		conn, err := grpc.NewClient("passthrough:///"+r.target.Host, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return err
		}
		defer conn.Close()
		one = r.overGRPC(conn)
	case "tcp":
		one = r.overTCP
	default:
		return fmt.Errorf("%s: no such scheme: %q", r.target, r.target.Scheme)
	}
	for n := range r.count {
		ctx, cancel := context.WithTimeout(context.Background(), requestLimit)
		answer, body, err := one(ctx)
		cancel()
		if err != nil {
			return fmt.Errorf("request %d: %w", n, err)
		}
		if err := report(out, n, append(facts{{"Url", r.target.String()}}, answer...), body); err != nil {
			return err
		}
	}
	return nil
}

// report prints an answer; an empty line ends it.
func report(out io.Writer, n int, answer facts, body string) error {
	var b strings.Builder
	for _, f := range answer {
		fmt.Fprintf(&b, "[%d] %s=%s\n", n, f.key, f.value)
	}
	for line := range strings.Lines(body) {
		fmt.Fprintf(&b, "[%d body] %s\n", n, strings.TrimSuffix(line, "\n"))
	}
	_, err := io.WriteString(out, b.String()+"\n")
	return err
}

// overHTTP follows no redirect: the suite wants to see it.
func (r request) overHTTP() func(context.Context) (facts, string, error) {
	client := &http.Client{
		Transport:     &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return func(ctx context.Context) (facts, string, error) {
		req, err := http.NewRequestWithContext(ctx, r.method, r.target.String(), nil)
		if err != nil {
			return nil, "", err
		}
		req.Header, req.Host = r.header.Clone(), r.host
		resp, err := client.Do(req)
		if err != nil {
			return nil, "", err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		answer := facts{{"StatusCode", fmt.Sprint(resp.StatusCode)}}
		for _, name := range slices.Sorted(maps.Keys(resp.Header)) {
			for _, value := range resp.Header[name] {
				answer = append(answer, fact{"ResponseHeader", name + ":" + value})
			}
		}
		return answer, string(body), err
	}
}

func (r request) overGRPC(conn *grpc.ClientConn) func(context.Context) (facts, string, error) {
	return func(ctx context.Context) (facts, string, error) {
		for name, values := range r.header {
			for _, v := range values {
				ctx = metadata.AppendToOutgoingContext(ctx, name, v)
			}
		}
		answer := new(wrapperspb.StringValue)
		err := conn.Invoke(ctx, "/"+grpcService+"/"+grpcMethod, wrapperspb.String(r.target.String()), answer)
		return nil, answer.GetValue(), err
	}
}

// overTCP reads the greeting and wants a line to come back.
func (r request) overTCP(ctx context.Context) (facts, string, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", r.target.Host)
	if err != nil {
		return nil, "", err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	const line = "hello\n"
	_, err = io.WriteString(conn, line)
	if err = errors.Join(err, conn.SetDeadline(deadline)); err != nil {
		return nil, "", err
	}
	var body strings.Builder
	for lines := bufio.NewReader(conn); ; {
		got, err := lines.ReadString('\n')
		if err != nil || got == line {
			return nil, body.String(), err
		}
		body.WriteString(got)
	}
}
