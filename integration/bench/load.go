package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"
)

// Result is what one load run prints, as one line of JSON.
type Result struct {
	Seconds float64 `json:"seconds"`
	Bytes   uint64  `json:"bytes"`  // delivered, as the server counted them
	Ops     int     `json:"ops"`    // requests or connections completed
	Errors  int     `json:"errors"` // requests or connections failed
	P50     float64 `json:"p50"`    // latency of one operation, milliseconds
	P99     float64 `json:"p99"`
}

// Load modes.
const (
	loadThroughput  = "throughput"
	loadRequests    = "requests"
	loadConnections = "connections"
	loadIdle        = "idle"
	loadBeside      = "beside"  // requests beside a connection whose server does not read
	loadStalled     = "stalled" // connections whose servers do not read, held
)

func loadMain(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("load", flag.ContinueOnError)
	mode := f.String("mode", loadRequests, "throughput, requests, connections, idle, beside or stalled")
	target := f.String("target", "", "host:port of the server")
	conns := f.Int("conns", 1, "connections at once, 1 to 5000")
	duration := f.Duration("duration", 3*time.Second, "how long, up to 60s")
	if err := f.Parse(args); err != nil {
		return err
	}
	if *conns < 1 || *conns > 5000 || *duration <= 0 || *duration > time.Minute {
		return fmt.Errorf("load: -conns %d -duration %v is out of bounds", *conns, *duration)
	}
	if err := moreConnections(); err != nil {
		return err
	}
	l := load{target: *target, conns: *conns, duration: *duration}
	var work func(context.Context) (Result, error)
	switch *mode {
	case loadThroughput:
		work = l.throughput
	case loadRequests:
		work = func(ctx context.Context) (Result, error) { return l.repeat(ctx, l.requestWorker) }
	case loadConnections:
		work = func(ctx context.Context) (Result, error) { return l.repeat(ctx, l.connectionWorker) }
	case loadIdle:
		work = l.idle
	case loadBeside:
		work = l.beside
	case loadStalled:
		work = l.stalled
	default:
		return fmt.Errorf("load: unknown -mode %q", *mode)
	}
	res, err := work(ctx)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(res)
}

type load struct {
	target   string
	conns    int
	duration time.Duration
}

// open connects and sends the mode byte; the deadline ends the connection a
// little after the run, whatever happens.
func (l *load) open(ctx context.Context, mode byte, extra time.Duration) (*net.TCPConn, error) {
	d := net.Dialer{Timeout: 15 * time.Second}
	c, err := d.DialContext(ctx, "tcp", l.target)
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(l.duration + extra))
	if _, err := c.Write([]byte{mode}); err != nil {
		c.Close()
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// throughput writes on all connections for the duration, then asks the server
// how much arrived. The clock stops when the last byte was counted.
func (l *load) throughput(ctx context.Context) (Result, error) {
	counts := make([]uint64, l.conns)
	errs := make([]error, l.conns)
	conns := make([]*net.TCPConn, l.conns)
	for i := range conns {
		c, err := l.open(ctx, modeSink, 30*time.Second)
		if err != nil {
			return Result{}, err
		}
		defer c.Close()
		conns[i] = c
	}
	start := time.Now()
	var wg sync.WaitGroup
	for i := range conns {
		wg.Go(func() { counts[i], errs[i] = push(conns[i], start.Add(l.duration)) })
	}
	wg.Wait()
	res := Result{Seconds: time.Since(start).Seconds()}
	for _, n := range counts {
		res.Bytes += n
	}
	return res, errors.Join(errs...)
}

func push(c *net.TCPConn, until time.Time) (uint64, error) {
	buf := make([]byte, 256<<10)
	for time.Now().Before(until) {
		if _, err := c.Write(buf); err != nil {
			return 0, err
		}
	}
	if err := c.CloseWrite(); err != nil {
		return 0, err
	}
	var answer [8]byte
	if _, err := io.ReadFull(c, answer[:]); err != nil {
		return 0, fmt.Errorf("read the server's count: %w", err)
	}
	return binary.BigEndian.Uint64(answer[:]), nil
}

// worker performs operations until the time is over and reports each latency.
type worker func(ctx context.Context, until time.Time) (latencies []time.Duration, failed int)

// repeat runs one worker per connection and merges what they measured.
func (l *load) repeat(ctx context.Context, w worker) (Result, error) {
	var (
		mu     sync.Mutex
		all    []time.Duration
		failed int
		wg     sync.WaitGroup
	)
	start := time.Now()
	for range l.conns {
		wg.Go(func() {
			lat, bad := w(ctx, start.Add(l.duration))
			mu.Lock()
			defer mu.Unlock()
			all = append(all, lat...)
			failed += bad
		})
	}
	wg.Wait()
	res := Result{Seconds: time.Since(start).Seconds(), Ops: len(all), Errors: failed}
	if len(all) == 0 {
		return res, fmt.Errorf("load: no operation succeeded, %d failed", failed)
	}
	slices.Sort(all)
	res.P50 = millis(all[len(all)/2])
	res.P99 = millis(all[len(all)*99/100])
	return res, nil
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func (l *load) requestWorker(ctx context.Context, until time.Time) (lat []time.Duration, failed int) {
	c, err := l.open(ctx, modeEcho, 10*time.Second)
	if err != nil {
		return nil, 1
	}
	defer c.Close()
	for ctx.Err() == nil && time.Now().Before(until) {
		began := time.Now()
		if err := roundTrip(c); err != nil {
			return lat, failed + 1
		}
		lat = append(lat, time.Since(began))
	}
	return lat, failed
}

func (l *load) connectionWorker(ctx context.Context, until time.Time) (lat []time.Duration, failed int) {
	for ctx.Err() == nil && time.Now().Before(until) {
		began := time.Now()
		if err := l.connectOnce(ctx); err != nil {
			failed++
			continue
		}
		lat = append(lat, time.Since(began))
	}
	return lat, failed
}

func (l *load) connectOnce(ctx context.Context) error {
	c, err := l.open(ctx, modeEcho, 10*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	return roundTrip(c)
}

func roundTrip(c *net.TCPConn) error {
	var buf [responseSize]byte
	if _, err := c.Write(buf[:requestSize]); err != nil {
		return err
	}
	_, err := io.ReadFull(c, buf[:])
	return err
}

// idle opens the connections, uses each once and holds them.
func (l *load) idle(ctx context.Context) (Result, error) {
	for range l.conns {
		c, err := l.open(ctx, modeEcho, time.Minute)
		if err != nil {
			return Result{}, err
		}
		defer c.Close()
		if err := roundTrip(c); err != nil {
			return Result{}, err
		}
	}
	return l.hold(ctx)
}

// hold prints a line and waits until standard input ends or the time is over.
func (l *load) hold(ctx context.Context) (Result, error) {
	fmt.Println("holding")
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		io.Copy(io.Discard, os.Stdin)
	}()
	select {
	case <-ended:
	case <-ctx.Done():
	case <-time.After(l.duration):
	}
	return Result{Ops: l.conns}, nil
}

// beside repeats requests on all connections but one, whose server never reads and
// which is kept full.
func (l *load) beside(ctx context.Context) (Result, error) {
	full, err := l.open(ctx, modeHang, 10*time.Second)
	if err != nil {
		return Result{}, err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		buf := make([]byte, 256<<10)
		for err := error(nil); err == nil; {
			_, err = full.Write(buf)
		}
	}()
	defer func() {
		full.SetLinger(0)
		full.Close()
		<-ended
	}()
	others := *l
	others.conns = max(1, l.conns-1)
	return others.repeat(ctx, others.requestWorker)
}

const (
	// stallBytes is what a stalled connection is offered at most; the kernel's
	// buffers along the way take some of it.
	stallBytes = 4 << 20
	// stallTime is how long it may take some.
	stallTime = 500 * time.Millisecond
	// stallers is how many connections are filled at once.
	stallers = 100
)

// stalled opens connections whose servers never read, fills them and holds them.
func (l *load) stalled(ctx context.Context) (Result, error) {
	conns := make([]*net.TCPConn, l.conns)
	errs := make([]error, l.conns)
	next := make(chan int)
	var wg sync.WaitGroup
	for range stallers {
		wg.Go(func() {
			for i := range next {
				conns[i], errs[i] = l.fill(ctx)
			}
		})
	}
	for i := range conns {
		next <- i
	}
	close(next)
	wg.Wait()
	defer func() {
		for _, c := range conns {
			if c != nil {
				c.SetLinger(0)
				c.Close()
			}
		}
	}()
	if err := errors.Join(errs...); err != nil {
		return Result{}, err
	}
	return l.hold(ctx)
}

// fill opens a connection and writes until it takes no more.
func (l *load) fill(ctx context.Context) (*net.TCPConn, error) {
	c, err := l.open(ctx, modeHang, time.Minute)
	if err != nil {
		return nil, err
	}
	c.SetWriteDeadline(time.Now().Add(stallTime))
	if _, err := c.Write(make([]byte, stallBytes)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		c.Close()
		return nil, err
	}
	return c, nil
}
