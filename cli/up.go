package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/culvert-mesh/culvert/cli/laptop"
	"github.com/culvert-mesh/culvert/cli/laptop/logfile"
	"github.com/culvert-mesh/culvert/cli/laptop/pod"
	"github.com/culvert-mesh/culvert/pkg/run"
)

// upOptions are the flags of `culvert up`.
type upOptions struct {
	name     string
	nodes    int
	ztunnels []string
	detach   bool
	plain    bool
	timeout  time.Duration
	daemon   bool // the process that --detach leaves behind
}

func upCommand(e *env) *cobra.Command {
	c := &cobra.Command{
		Use:   "up FOLDER...",
		Short: "Run a whole mesh on this machine from folders of YAML",
		Long: `Run a whole mesh on this machine from folders of YAML.

Nodes and pods are network namespaces of this machine; each component of the mesh
is a process inside its node's. The folders hold ordinary Kubernetes, Gateway API
and Istio YAML, and edits take effect while the mesh runs. A container runs its
command as a process of this machine; the image culvert/echo is built in.

Ctrl-C, culvert down, or the end of this process remove everything that it made.`,
		Example: "  culvert up examples/shop\n  culvert up --detach --nodes 3 examples/shop",
		Args:    atLeastOne("up wants a folder of YAML", "such as: culvert up examples/shop"),
	}
	var o upOptions
	f := c.Flags()
	f.StringVar(&o.name, "name", meshName(e), "name of the mesh; several may run at once")
	f.IntVar(&o.nodes, "nodes", 2, "how many nodes")
	f.StringArrayVar(&o.ztunnels, "ztunnel", nil, "NODE=PATH: run that program as the node's ztunnel (repeatable)")
	f.BoolVarP(&o.detach, "detach", "d", false, "return when the mesh is ready, and leave it running")
	f.DurationVar(&o.timeout, "timeout", 2*time.Minute, "with --detach: give up when it is not ready after so long")
	f.BoolVar(&o.plain, "plain", false, "print events as lines, also on a terminal")
	f.BoolVar(&o.daemon, "daemon", false, "")
	_ = f.MarkHidden("daemon")
	c.RunE = func(c *cobra.Command, folders []string) error {
		if o.detach && !o.daemon {
			return detach(c.Context(), e, o, folders)
		}
		return up(c.Context(), e, o, folders)
	}
	return c
}

// newMesh builds a mesh that tells event what happens.
func newMesh(e *env, o upOptions, folders []string, event func(laptop.Event)) (*laptop.Mesh, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	ztunnels, err := ztunnelPrograms(o.ztunnels)
	if err != nil {
		return nil, err
	}
	return laptop.New(laptop.Config{
		Name: o.name, Folders: folders, Nodes: o.nodes, Ztunnels: ztunnels, Self: self,
		PATH: pod.Getenv(e.environ, "PATH"), Version: version, Log: slog.New(slog.DiscardHandler), Event: event,
	})
}

// ztunnelPrograms reads NODE=PATH pairs; the paths become absolute.
func ztunnelPrograms(pairs []string) (map[string]string, error) {
	programs := map[string]string{}
	for _, s := range pairs {
		node, path, ok := strings.Cut(s, "=")
		if !ok || path == "" {
			return nil, laptop.WithHint(fmt.Errorf("--ztunnel %s: want NODE=PATH", s), "such as --ztunnel node-2=/usr/local/bin/ztunnel")
		}
		abs, err := filepath.Abs(path)
		if err != nil {
			return nil, err
		}
		programs[node] = abs
	}
	return programs, nil
}

// up runs a mesh in this process.
func up(ctx context.Context, e *env, o upOptions, folders []string) error {
	show := viewFor(e, o)
	m, err := newMesh(e, o, folders, show.event)
	if err != nil {
		return err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		show.run(ctx, m)
	}()
	err = m.Run(ctx)
	show.stop()
	<-done
	var sig *signalled
	if errors.As(err, &sig) || ctx.Err() != nil && (err == nil || errors.Is(err, context.Cause(ctx))) {
		err = nil
	}
	if err == nil {
		fmt.Fprintln(e.stdout, "everything is removed")
	}
	return err
}

// view shows a mesh that runs.
type view interface {
	event(laptop.Event)
	run(ctx context.Context, m *laptop.Mesh) // until ctx ends or stop
	stop()
}

func viewFor(e *env, o upOptions) view {
	if f, ok := e.stdout.(*os.File); ok && !o.plain && !o.daemon && term.IsTerminal(int(f.Fd())) {
		return newLiveView(f)
	}
	return &lineView{w: e.stdout, over: make(chan struct{})}
}

// lineView prints each event as a line.
type lineView struct {
	w    io.Writer
	over chan struct{}
}

func (v *lineView) event(ev laptop.Event) { fmt.Fprintln(v.w, eventLine(ev)) }

func (v *lineView) run(context.Context, *laptop.Mesh) { <-v.over }

func (v *lineView) stop() { close(v.over) }

func eventLine(ev laptop.Event) string {
	mark := " "
	if ev.Bad {
		mark = "!"
	}
	return fmt.Sprintf("%s %s %s: %s", ev.Time.Format("15:04:05.000"), mark, ev.Subject, ev.Text)
}

// detach starts the mesh in a process of its own, shows its events until it is
// ready and leaves it.
func detach(ctx context.Context, e *env, o upOptions, folders []string) error {
	if err := laptop.Check(); err != nil {
		return err
	}
	client, err := laptop.NewClient(o.name)
	if err != nil {
		return err
	}
	for i := range folders {
		if folders[i], err = filepath.Abs(folders[i]); err != nil {
			return err
		}
	}
	programs, err := ztunnelPrograms(o.ztunnels)
	if err != nil {
		return err
	}
	o.ztunnels = nil // said again with absolute paths: the daemon's folder is another
	for node, path := range programs {
		o.ztunnels = append(o.ztunnels, node+"="+path)
	}
	if err := client.Dir().Free(); err != nil {
		return err
	}
	d, err := startDaemon(o, client.Dir(), folders)
	if err != nil {
		return err
	}
	following, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		_ = logfile.Follow(following, d.log, func(line []byte) { fmt.Fprintf(e.stdout, "%s\n", line) })
	}()
	waiting, cancel := context.WithTimeoutCause(ctx, o.timeout, errNotReady)
	defer cancel()
	if err := d.awaitReady(waiting, client); err != nil {
		return err
	}
	fmt.Fprintf(e.stdout, "mesh %q is ready; stop it with: culvert down --name %s\n", o.name, o.name)
	return nil
}

// daemon is the process of a detached mesh while its starter waits for it.
type daemon struct {
	cmd    *exec.Cmd
	log    string
	exited chan error
}

// startDaemon starts this program again, in a session of its own, with its output
// in a file.
func startDaemon(o upOptions, dir laptop.Dir, folders []string) (*daemon, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(laptop.Root, 0o755); err != nil {
		return nil, err
	}
	log, err := os.Create(dir.UpLog())
	if err != nil {
		return nil, err
	}
	defer log.Close()
	args := []string{"up", "--daemon", "--name", o.name, "--nodes", fmt.Sprint(o.nodes)}
	for _, z := range o.ztunnels {
		args = append(args, "--ztunnel", z)
	}
	cmd := exec.Command(self, append(args, folders...)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	d := &daemon{cmd: cmd, log: log.Name(), exited: make(chan error, 1)}
	go func() { d.exited <- cmd.Wait() }()
	return d, nil
}

// awaitReady waits until the mesh is ready; one that ends before is an error
// with the last lines that it printed, and on ctx it is stopped.
func (d *daemon) awaitReady(ctx context.Context, client *laptop.Client) error {
	for {
		if st, err := client.Status(ctx); err == nil && st.Started {
			return nil
		}
		select {
		case <-d.exited:
			return d.lastWords()
		default:
		}
		if err := run.Sleep(ctx, 50*time.Millisecond); err != nil {
			err = whyNot(err, client)
			_ = d.cmd.Process.Signal(syscall.SIGTERM)
			<-d.exited
			return err
		}
	}
}

// errNotReady says that a mesh took too long.
var errNotReady = errors.New("the mesh is not ready in time and was stopped")

// whyNot adds what is missing to errNotReady.
func whyNot(err error, client *laptop.Client) error {
	if !errors.Is(err, errNotReady) {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	st, serr := client.Status(ctx)
	if serr != nil {
		return err
	}
	return fmt.Errorf("%w: %s", err, strings.Join(append(st.NotReady, problems(st)...), "; "))
}

func (d *daemon) lastWords() error {
	text, err := os.ReadFile(d.log)
	_ = os.Remove(d.log)
	if err != nil {
		return errors.New("the mesh ended before it was ready")
	}
	last, hint := "the mesh ended before it was ready", ""
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if msg, ok := strings.CutPrefix(line, "culvert: "); ok {
			last = msg
		}
		if h, ok := strings.CutPrefix(line, "hint: "); ok {
			hint = h
		}
	}
	if hint != "" {
		return laptop.WithHint(errors.New(last), "%s", hint)
	}
	return errors.New(last)
}
