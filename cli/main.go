// Command culvert runs and inspects a Culvert mesh.
//
//	culvert up FOLDER     a whole mesh on this machine: nodes and pods are network namespaces
//	culvert ps            what runs           culvert exec POD -- CMD   a command inside a pod
//	culvert status        is it healthy?      culvert log               who talked to whom
//	culvert certs         which identities    culvert restart           replace a part while traffic goes on
//	culvert why POD TO    would it be let in? culvert demo              see the mesh at work
//	culvert down          stop it
//
//	culvert install | upgrade | uninstall     the mesh on a Kubernetes cluster
//	culvert check         can the cluster take it, is it healthy, and what to do
//	culvert waypoint      L7 for a namespace
//
// Each verb has a file of its own. What a verb found wrong goes to standard
// error with what to do about it, and the exit status is 1; results go to
// standard output, as JSON with -o json.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/cli/laptop"
)

// version is set by the linker.
var version = "devel"

func main() {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	ctx, cancel := context.WithCancelCause(context.Background())
	go func() {
		s := <-signals
		cancel(&signalled{s})
		// A second one is from a person who has waited: timeout(1) and shells signal
		// a process, and its group at once after it.
		for first := time.Now(); time.Since(first) < time.Second; {
			<-signals
		}
		os.Exit(2)
	}()
	err := command(&env{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, environ: os.Environ()}).ExecuteContext(ctx)
	os.Exit(report(os.Stderr, err))
}

// signalled is the cause of a context that a signal ended.
type signalled struct{ signal os.Signal }

func (s *signalled) Error() string { return s.signal.String() }

// env is what a verb knows of the process that it runs in.
type env struct {
	stdin   io.Reader
	stdout  io.Writer
	stderr  io.Writer
	environ []string
}

// command is the table of verbs.
func command(e *env) *cobra.Command {
	root := &cobra.Command{
		Use:           "culvert",
		Short:         "An ambient-mode service mesh",
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       version,
	}
	root.SetOut(e.stdout)
	root.SetErr(e.stderr)
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error { return laptop.WithHint(err, "%s --help", c.CommandPath()) })
	root.AddCommand(
		upCommand(e),
		downCommand(e),
		installCommand(e),
		upgradeCommand(e),
		uninstallCommand(e),
		checkCommand(e),
		waypointCommand(e),
		psCommand(e),
		statusCommand(e),
		execCommand(e),
		logCommand(e),
		certsCommand(e),
		whyCommand(e),
		restartCommand(e),
		fetchCommand(e),
		demoCommand(e),
		versionCommand(e),
		componentCommand(e),
	)
	return root
}

// exitStatus ends the process with a status and says nothing more.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// report tells a person what went wrong and what to do, and returns the status
// to exit with.
func report(w io.Writer, err error) int {
	var status exitStatus
	var sig *signalled
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return int(status)
	case errors.As(err, &sig), errors.Is(err, context.Canceled):
		return 130
	}
	if strings.HasPrefix(err.Error(), "unknown command") {
		err = laptop.WithHint(err, "culvert help lists them")
	}
	fmt.Fprintf(w, "culvert: %v\n", err)
	var hint *laptop.HintError
	if errors.As(err, &hint) {
		fmt.Fprintf(w, "hint: %s\n", hint.Hint)
	}
	return 1
}
