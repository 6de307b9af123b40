// Package fetch is a small client for looking at a mesh from inside a pod, where
// no other client may be installed: one request, or a paced load that counts.
//
//	http://host[:port]/path   one HTTP/1.1 request each time
//	tcp://host:port           sends bytes, expects them back: --bytes in one go with
//	                          both directions at once and half-close, or one short
//	                          message each time on a single connection
//	dns://name[?type=SRV][&tcp][&at=server]
//	                          a DNS query each time: type A, over UDP, to the first
//	                          server of resolv.conf, if nothing else is said
//
// Options say how often; a Result says what happened. Do runs one load and is
// done when it returns.
package fetch

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Options say what to request and how often.
type Options struct {
	URL       string
	Method    string // default GET
	Header    http.Header
	Body      string
	Count     int           // how many; 0 = one, or as many as fit For
	Every     time.Duration // one starts each Every; 0 = each after the other
	For       time.Duration // stop starting after that long; 0 = by Count only
	Timeout   time.Duration // of one request or message; default 10 s
	KeepAlive bool          // reuse connections; otherwise each request dials
	By        string        // count answers by this response header
	Bytes     int64         // tcp: exchange that many bytes in one go
	Started   func()        // called once when the first answer has come; may be nil
}

// Result is what happened.
type Result struct {
	Sent     int            `json:"sent"`
	OK       int            `json:"ok"`
	Failed   int            `json:"failed"` // no answer, or a status from 400
	Status   map[int]int    `json:"status,omitempty"`
	By       map[string]int `json:"by,omitempty"`
	Errors   map[string]int `json:"errors,omitempty"`
	Slowest  time.Duration  `json:"slowest_ns"`
	Bytes    int64          `json:"bytes,omitempty"`
	SHA256   string         `json:"sha256,omitempty"`
	Duration time.Duration  `json:"duration_ns"`

	Answer *Answer `json:"answer,omitempty"` // of a single HTTP request or DNS query
}

// Answer is one HTTP answer, or the records of a DNS answer.
type Answer struct {
	Status string      `json:"status"`
	Code   int         `json:"code,omitempty"`
	Header http.Header `json:"header,omitempty"`
	Body   text        `json:"body"`
}

// text is bytes that JSON shows as a string.
type text []byte

// MarshalText implements encoding.TextMarshaler.
func (t text) MarshalText() ([]byte, error) { return t, nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (t *text) UnmarshalText(b []byte) error {
	*t = slices.Clone(b)
	return nil
}

// String is the result as people read it.
func (r *Result) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "sent %d, ok %d, failed %d, slowest %s", r.Sent, r.OK, r.Failed, r.Slowest.Round(time.Millisecond/10))
	for _, code := range slices.Sorted(maps.Keys(r.Status)) {
		fmt.Fprintf(&b, "\n  status %d: %d", code, r.Status[code])
	}
	for _, v := range slices.Sorted(maps.Keys(r.By)) {
		fmt.Fprintf(&b, "\n  %s: %d", cmp.Or(v, "(none)"), r.By[v])
	}
	for _, e := range slices.Sorted(maps.Keys(r.Errors)) {
		fmt.Fprintf(&b, "\n  error %s: %d", e, r.Errors[e])
	}
	if r.SHA256 != "" {
		fmt.Fprintf(&b, "\n  %d bytes each way, sha256 %s", r.Bytes, r.SHA256)
	}
	return b.String()
}

// Do runs the load until it is complete or ctx ends. Failed requests are no
// error of Do; a URL that makes no sense is.
func Do(ctx context.Context, o Options) (*Result, error) {
	u, err := url.Parse(o.URL)
	if err != nil {
		return nil, fmt.Errorf("fetch: %w", err)
	}
	if u.Opaque != "" {
		return nil, fmt.Errorf("fetch %s: no host; want %s://%s", o.URL, u.Scheme, u.Opaque)
	}
	o.Timeout = cmp.Or(o.Timeout, 10*time.Second)
	r := &run{opt: o, res: &Result{Status: map[int]int{}, Errors: map[string]int{}}, start: time.Now()}
	if o.By != "" {
		r.res.By = map[string]int{}
	}
	switch u.Scheme {
	case "http", "https":
		err = r.http(ctx)
	case "tcp":
		err = r.tcp(ctx, u.Host)
	case "dns":
		err = r.dns(ctx, u)
	default:
		return nil, fmt.Errorf("fetch %s: want http://, https://, tcp:// or dns://", o.URL)
	}
	r.res.Duration = time.Since(r.start)
	return r.res, err
}

// run is one load on its way.
type run struct {
	opt   Options
	start time.Time

	mu   sync.Mutex
	res  *Result
	once sync.Once
}

// single reports whether the answer itself is wanted and not a count.
func (o Options) single() bool { return o.Count <= 1 && o.For == 0 }

func (r *run) http(ctx context.Context) error {
	transport := &http.Transport{
		DisableKeepAlives:   !r.opt.KeepAlive,
		MaxIdleConnsPerHost: 256,
		TLSClientConfig:     &tls.Config{InsecureSkipVerify: true}, // it looks, it does not trust
		DisableCompression:  true,
	}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return r.pace(ctx, func(ctx context.Context) { r.request(ctx, client) })
}

// pace calls one as the options say. With Every, calls overlap when they are
// slower than that: a stalled one never hides that others would have failed.
func (r *run) pace(ctx context.Context, one func(context.Context)) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	count := r.opt.Count
	if count == 0 && r.opt.For == 0 {
		count = 1
	}
	var tick <-chan time.Time
	if r.opt.Every > 0 {
		t := time.NewTicker(r.opt.Every)
		defer t.Stop()
		tick = t.C
	}
	for i := 0; (count == 0 || i < count) && (r.opt.For == 0 || time.Since(r.start) < r.opt.For); i++ {
		if ctx.Err() != nil {
			return nil
		}
		if tick == nil {
			one(ctx)
			continue
		}
		wg.Go(func() { one(ctx) })
		select {
		case <-tick:
		case <-ctx.Done():
		}
	}
	return nil
}

func (r *run) request(ctx context.Context, client *http.Client) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.opt.Timeout)
	defer cancel()
	began := time.Now()
	a, err := r.roundTrip(ctx, client)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.count(began, err)
	if err != nil {
		return
	}
	r.res.Status[a.Code]++
	if r.res.By != nil {
		r.res.By[a.Header.Get(r.opt.By)]++
	}
	if a.Code >= 400 {
		r.res.OK--
		r.res.Failed++
	}
	if r.opt.single() {
		r.res.Answer = a
	}
}

// count notes one request or message that is over. r.mu is held.
func (r *run) count(began time.Time, err error) {
	r.res.Sent++
	r.res.Slowest = max(r.res.Slowest, time.Since(began))
	if err != nil {
		r.res.Failed++
		r.res.Errors[explain(err)]++
		return
	}
	r.res.OK++
	r.once.Do(func() {
		if r.opt.Started != nil {
			r.opt.Started()
		}
	})
}

func (r *run) roundTrip(ctx context.Context, client *http.Client) (*Answer, error) {
	var body io.Reader
	if r.opt.Body != "" {
		body = strings.NewReader(r.opt.Body)
	}
	req, err := http.NewRequestWithContext(ctx, cmp.Or(r.opt.Method, http.MethodGet), r.opt.URL, body)
	if err != nil {
		return nil, err
	}
	req.Header = r.opt.Header.Clone()
	if req.Header == nil {
		req.Header = http.Header{}
	}
	if host := req.Header.Get("Host"); host != "" {
		req.Host = host
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	a := &Answer{Status: resp.Status, Code: resp.StatusCode, Header: resp.Header}
	if r.opt.single() {
		a.Body, err = io.ReadAll(resp.Body)
	} else {
		_, err = io.Copy(io.Discard, resp.Body)
	}
	return a, err
}

// explain makes an error countable: what happened, without ports that differ
// from one time to the next.
func explain(err error) string {
	var dns *net.DNSError
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		return "timed out"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "connection reset"
	case errors.As(err, &dns):
		return "no such host " + dns.Name
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "closed without an answer"
	}
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err.Error()
	}
	return err.Error()
}
