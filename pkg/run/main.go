package run

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
)

// Main is the whole of a program's main function. It calls start with a context
// that ends at SIGTERM or SIGINT; a second signal ends the process at once with
// status 2. When start fails for any reason but that cancellation, Main prints
// "name: error" on standard error and exits with status 1.
func Main(name string, start func(ctx context.Context, log *slog.Logger) error) {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	ctx, cancel := context.WithCancelCause(context.Background())
	go watchSignals(signals, cancel, os.Exit)
	log := slog.New(slog.NewTextHandler(os.Stderr, nil)).With("program", name)
	os.Exit(exitStatus(name, start(ctx, log), os.Stderr))
}

// Signalled is the cause of a context that a signal ended.
type Signalled struct{ Signal os.Signal }

func (s *Signalled) Error() string { return "signal: " + s.Signal.String() }

// watchSignals cancels at the first signal and exits at the second.
func watchSignals(signals <-chan os.Signal, cancel context.CancelCauseFunc, exit func(int)) {
	cancel(&Signalled{<-signals})
	<-signals
	exit(2)
}

// exitStatus reports err to a person and returns the status to exit with. Being
// told to stop is not a failure.
func exitStatus(name string, err error, stderr io.Writer) int {
	var signalled *Signalled
	if err == nil || errors.Is(err, context.Canceled) || errors.As(err, &signalled) {
		return 0
	}
	fmt.Fprintf(stderr, "%s: %v\n", name, err)
	return 1
}
