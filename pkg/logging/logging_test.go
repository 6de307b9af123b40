package logging

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/slogtest"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

func levels(t testing.TB, filter string) *Levels {
	t.Helper()
	l, err := NewLevels(filter)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestLevels(t *testing.T) {
	t.Parallel()
	l := levels(t, "warn,proxy=debug,proxy::inbound=error")
	check := func(scope string, want slog.Level) {
		t.Helper()
		if got := l.Var(scope).Level(); got != want {
			t.Errorf("%s: %s, want %s", scope, LevelName(got), LevelName(want))
		}
	}
	check("xds", slog.LevelWarn)
	check("proxy", slog.LevelDebug)
	check("proxy::outbound", slog.LevelDebug)
	check("proxy::inbound", slog.LevelError)
	check("proxyish", slog.LevelWarn)
	if err := l.Set("info,access=trace"); err != nil {
		t.Fatal(err)
	}
	check("xds", slog.LevelInfo)
	check("access", LevelTrace)
	check("proxy", slog.LevelDebug)
	if got, want := l.String(), "info,access=trace,proxy=debug,proxy::inbound=error"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	for _, bad := range []string{"loud", "access=", "=debug", "debug,a b=info", "access=debug=info"} {
		if l.Set("error,"+bad) == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
	check("xds", slog.LevelInfo)
	l.Reset()
	check("xds", slog.LevelWarn)
	check("access", slog.LevelWarn)
	if !levels(t, "").Enabled("x", slog.LevelInfo) || levels(t, "off").Enabled("x", slog.LevelError) {
		t.Error("default or off")
	}
}

func TestPlainLine(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 8, 1, 14, 0, 0, 123456789, time.FixedZone("", 7200))
	line := Begin(nil, Plain, at, slog.LevelInfo, "access", "connection complete")
	line.Addr("src.addr", netip.MustParseAddrPort("[::ffff:10.0.0.1]:80"))
	line.Text("src.workload", "a")
	line.Word("n", "word")
	line.Word("w", "two words")
	line.Uint("u", 7)
	line.Millis("duration", 12345*time.Microsecond)
	line.Identity("id", mesh.Identity{TrustDomain: "td", Namespace: "n", ServiceAccount: "s"})
	want := "2026-08-01T12:00:00.123456Z\tinfo\taccess\tconnection complete\t" +
		`src.addr=10.0.0.1:80 src.workload="a" n=word w="two words" u=7 duration="12ms" id="spiffe://td/ns/n/sa/s"` + "\n"
	if got := string(line.End()); got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestHandlerFollowsSlogsRules(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	h := NewHandler(&out, JSON, levels(t, "trace"))
	err := slogtest.TestHandler(zeroTime{h}, func() []map[string]any {
		var results []map[string]any
		for line := range strings.Lines(out.String()) {
			results = append(results, nested(t, line))
		}
		return results
	})
	if err != nil {
		t.Error(err)
	}
}

// zeroTime passes over the one rule that cannot hold in upstream's shape, where
// every line has a time.
type zeroTime struct{ slog.Handler }

func (z zeroTime) Handle(ctx context.Context, r slog.Record) error {
	if r.Time.IsZero() {
		r.AddAttrs(slog.Bool("timeless", true))
	}
	return z.Handler.Handle(ctx, r)
}

func (z zeroTime) WithAttrs(a []slog.Attr) slog.Handler { return zeroTime{z.Handler.WithAttrs(a)} }
func (z zeroTime) WithGroup(n string) slog.Handler      { return zeroTime{z.Handler.WithGroup(n)} }

// nested undoes what upstream's shape does to slog's: flat groups, other names.
func nested(t *testing.T, line string) map[string]any {
	var flat map[string]any
	if err := json.Unmarshal([]byte(line), &flat); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	out := map[string]any{slog.MessageKey: flat["message"], slog.LevelKey: flat["level"]}
	if flat["timeless"] == nil {
		out[slog.TimeKey] = flat["time"]
	}
	for key, value := range flat {
		if key == "message" || key == "level" || key == "time" || key == "scope" || key == "timeless" {
			continue
		}
		at := out
		parts := strings.Split(key, ".")
		for _, p := range parts[:len(parts)-1] {
			if at[p] == nil {
				at[p] = map[string]any{}
			}
			at = at[p].(map[string]any)
		}
		at[parts[len(parts)-1]] = value
	}
	return out
}

func TestScopesOfLoggers(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	l := levels(t, "info,xds=warn")
	log := slog.New(NewHandler(&out, Plain, l))
	xds := Scope(log, "xds").With("stream", 3)
	xds.Info("hidden")
	xds.Warn("seen", "error", errors.New("no\nway"), "id", mesh.Identity{TrustDomain: "td", Namespace: "n", ServiceAccount: "s"})
	if err := l.Set("xds=debug"); err != nil {
		t.Fatal(err)
	}
	xds.Debug("now", "addr", netip.MustParseAddrPort("1.2.3.4:5"), "took", time.Second)
	log.Debug("hidden")
	var lines []string
	for line := range strings.Lines(out.String()) {
		_, rest, _ := strings.Cut(strings.TrimSpace(line), "\t")
		lines = append(lines, rest)
	}
	want := []string{
		"warn\txds\tseen\tstream=3 error=\"no\\nway\" id=spiffe://td/ns/n/sa/s",
		"debug\txds\tnow\tstream=3 addr=1.2.3.4:5 took=1s",
	}
	if fmt.Sprint(lines) != fmt.Sprint(want) {
		t.Errorf("got %q", lines)
	}
	var nilError *testError
	log.Info("nil error", "error", nilError)
}

type testError struct{ text string }

func (e *testError) Error() string { return e.text }

// stuck blocks every write until released.
type stuck struct {
	release chan struct{}
	mu      sync.Mutex
	bytes.Buffer
}

func (s *stuck) Write(p []byte) (int, error) {
	<-s.release
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.Buffer.Write(p)
}

func TestWriterDropsInsteadOfBlocking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &stuck{release: make(chan struct{})}
		w := NewWriter(out, 100)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- w.Run(ctx) }()
		line := []byte("0123456789\n")
		write := func(n int) {
			for range n {
				if n, err := w.Write(line); n != len(line) || err != nil {
					t.Fatal(n, err)
				}
			}
		}
		write(1)
		synctest.Wait() // the first line is stuck in the output
		write(20)
		if got := w.Dropped(); got != 11 {
			t.Errorf("dropped %d of 20 lines, 9 fit", got)
		}
		close(out.release)
		synctest.Wait()
		write(5)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if got := strings.Count(out.String(), string(line)); got != 15 {
			t.Errorf("%d lines written, want 1+9+5", got)
		}
		write(1)
		if got := w.Dropped(); got != 12 {
			t.Errorf("a line after the end was not counted: %d", got)
		}
	})
}

func TestWriterEndsThoughOutputIsBlocked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &stuck{release: make(chan struct{})}
		w := NewWriter(out, 0)
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_, _ = w.Write([]byte("x\n"))
		start := time.Now()
		if err := w.Run(ctx); err == nil {
			t.Error("lost lines were not reported")
		}
		if took := time.Since(start); took != flushTime {
			t.Errorf("took %s", took)
		}
		close(out.release)
		synctest.Wait()
	})
}

func TestDuringWritesEverything(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	err := During(&out, 0, func(w *Writer) error {
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				for range 100 {
					_, _ = w.Write([]byte("one whole line\n"))
				}
			})
		}
		wg.Wait()
		return io.EOF
	})
	if err != io.EOF || strings.Count(out.String(), "one whole line\n") != 1000 {
		t.Errorf("%v, %d bytes", err, out.Len())
	}
}

// FuzzOneLine: whatever a peer puts into names, a call writes one line, and a JSON
// line gives it back.
func FuzzOneLine(f *testing.F) {
	f.Add("plain", "value")
	f.Add("new\nline\r\x00\x1b[31m", "\"quo\\ted\"\t\u2028\u0085")
	f.Add("\xff\xfe", "a=b c")
	f.Fuzz(func(t *testing.T, message, value string) {
		for _, format := range []Format{Plain, JSON} {
			line := Begin(nil, format, time.Now(), slog.LevelInfo, value, message)
			line.Text("text", value)
			line.Word(value, value)
			line.Identity("id", mesh.Identity{TrustDomain: value, Namespace: "n", ServiceAccount: value})
			text := string(line.End())
			body := strings.TrimSuffix(text, "\n")
			if strings.ContainsAny(body, "\n\r\v\f\x00\x1b\u0085\u2028\u2029") || strings.HasSuffix(body, "\n") {
				t.Fatalf("a control character got through: %q", text)
			}
			if format == Plain && strings.Count(body, "\t") != 4 {
				t.Fatalf("columns: %q", text)
			}
			if format == JSON {
				var got struct{ Text, Message string }
				if err := json.Unmarshal([]byte(text), &got); err != nil {
					t.Fatalf("%q: %v", text, err)
				}
				if utf8.ValidString(message) && !strings.EqualFold(value, "message") && got.Message != message {
					t.Fatalf("message %q came back as %q", message, got.Message)
				}
			}
		}
	})
}

func FuzzLevels(f *testing.F) {
	f.Add("info,access=debug")
	f.Add("warn,a::b=off,,trace")
	f.Fuzz(func(t *testing.T, filter string) {
		l, err := NewLevels(filter)
		if err != nil {
			return
		}
		again, err := NewLevels(l.String())
		if err != nil || again.String() != l.String() {
			t.Errorf("%q became %q, which does not parse back: %v", filter, l, err)
		}
	})
}

func TestHandlerAllocations(t *testing.T) {
	log := slog.New(NewHandler(io.Discard, Plain, levels(t, "info")))
	n := testing.AllocsPerRun(100, func() {
		log.LogAttrs(context.Background(), slog.LevelInfo, "message", slog.String("a", "b"), slog.Int("n", 5))
	})
	if n > 1 {
		t.Errorf("%v allocations per line", n)
	}
}
