package run

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

var errBroken = errors.New("broken")

// untilDone is a part that ends with its context.
func untilDone(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

func TestFirstErrorCancelsAllWithItsCause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var cause error
		var g Group
		g.Add("good", untilDone)
		g.Add("watcher", func(ctx context.Context) error {
			<-ctx.Done()
			cause = context.Cause(ctx)
			return cause
		})
		g.Add("quiet", func(context.Context) error { return nil })
		g.Add("bad", func(context.Context) error {
			time.Sleep(time.Second)
			return errBroken
		})
		err := g.Run(context.Background())
		if !errors.Is(err, errBroken) || err.Error() != "bad: broken" {
			t.Errorf("got %v", err)
		}
		if !errors.Is(cause, errBroken) {
			t.Errorf("cause %v", cause)
		}
	})
}

func TestGroupEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		why := errors.New("enough")
		ctx, cancel := context.WithCancelCause(context.Background())
		var g Group
		g.Add("a", untilDone)
		g.Add("b", func(ctx context.Context) error {
			<-ctx.Done()
			return fmt.Errorf("b: %w", context.Cause(ctx))
		})
		time.AfterFunc(time.Second, func() { cancel(why) })
		if err := g.Run(ctx); err != nil {
			t.Errorf("got %v", err)
		}
	})
}

func TestAnErrorWhileStoppingCounts(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	var g Group
	g.Add("a", func(ctx context.Context) error {
		<-ctx.Done()
		return errBroken
	})
	if err := g.Run(ctx); !errors.Is(err, errBroken) {
		t.Errorf("got %v", err)
	}
}

func TestPanicBecomesAnError(t *testing.T) {
	t.Parallel()
	var g Group
	g.Add("a", untilDone)
	g.Add("b", func(context.Context) error { panic("no way") })
	err := g.Run(context.Background())
	if err == nil || !strings.Contains(err.Error(), "b: panic: no way") || !strings.Contains(err.Error(), "run_test.go") {
		t.Errorf("got %v", err)
	}
	if err := new(Group).Run(context.Background()); err != nil {
		t.Error(err)
	}
}

func TestBackoff(t *testing.T) {
	t.Parallel()
	b := NewBackoff(time.Second, 10*time.Second)
	for range 3 {
		for _, want := range []time.Duration{1, 2, 4, 8, 10, 10} {
			want *= time.Second
			if got := b.Next(); got < want*8/10 || got > min(want*12/10, 10*time.Second) {
				t.Errorf("got %s, want about %s", got, want)
			}
		}
		b.Reset()
	}
}

func TestSleep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		if err := Sleep(context.Background(), time.Hour); err != nil || time.Since(start) != time.Hour {
			t.Errorf("%v after %s", err, time.Since(start))
		}
		ctx, cancel := context.WithCancelCause(context.Background())
		time.AfterFunc(time.Second, func() { cancel(errBroken) })
		if err := Sleep(ctx, time.Hour); err != errBroken || time.Since(start) != time.Hour+time.Second {
			t.Errorf("%v after %s", err, time.Since(start))
		}
	})
}

func TestSecondSignalExits(t *testing.T) {
	t.Parallel()
	signals := make(chan os.Signal, 2)
	exits := make(chan int, 1)
	ctx, cancel := context.WithCancelCause(context.Background())
	go watchSignals(signals, cancel, func(status int) { exits <- status })
	signals <- syscall.SIGTERM
	<-ctx.Done()
	var signalled *Signalled
	if err := context.Cause(ctx); !errors.As(err, &signalled) || signalled.Signal != syscall.SIGTERM || !strings.Contains(err.Error(), "terminated") {
		t.Errorf("cause %v", err)
	}
	select {
	case <-exits:
		t.Error("the first signal ended the process")
	default:
	}
	signals <- syscall.SIGINT
	if status := <-exits; status != 2 {
		t.Errorf("status %d", status)
	}
}

func TestExitStatus(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		err    error
		status int
		said   string
	}{
		{nil, 0, ""},
		{context.Canceled, 0, ""},
		{fmt.Errorf("x: %w", &Signalled{syscall.SIGTERM}), 0, ""},
		{errBroken, 1, "prog: broken\n"},
	} {
		var stderr bytes.Buffer
		if status := exitStatus("prog", test.err, &stderr); status != test.status || stderr.String() != test.said {
			t.Errorf("%v: status %d, %q", test.err, status, stderr.String())
		}
	}
}
