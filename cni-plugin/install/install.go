// Package install puts the CNI plugin on a node, keeps it there, and takes it off
// again.
//
//	/opt/cni/bin/culvert-cni           the binary, copied from the agent's image
//	/etc/cni/net.d/10-flannel.conflist the cluster's own, with our entry at its end
//
//	folder ──▶ Install, Uninstall (pure) ──▶ []Change ──▶ Apply
//	   ▲                                                   │
//	   └── another tool writes ── Run looks again ─────────┘
//
// Every file is replaced in one step, so the runtime never reads half of one. A
// plain configuration becomes a list, and is put back when the plugin goes. An
// Installer is run once; what it reports may be read from any goroutine.
package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/culvert-mesh/culvert/cni-plugin/eligible"
)

// Config says what is installed where.
type Config struct {
	Folder string // the runtime's configuration folder, /etc/cni/net.d
	Binary string // where the plugin's program is now
	BinDir string // where the runtime looks for programs, /opt/cni/bin
	Options
	Log *slog.Logger
	// Told is called after every look, with the number of changes made and why the
	// plugin is not installed, if it is not; may be nil. It must not wait.
	Told func(changes int, err error)
}

// Installer keeps the plugin installed. Make it with New.
type Installer struct {
	cfg    Config
	notify func() (*fsnotify.Watcher, error)

	mu    sync.Mutex
	state error // why it is not installed; nil when it is
	known bool  // state is meaningful
}

// New returns an installer that does nothing until Run.
func New(cfg Config) *Installer { return &Installer{cfg: cfg, notify: fsnotify.NewWatcher} }

// Err returns nil once the plugin is installed, and else why it is not.
func (i *Installer) Err() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if !i.known {
		return errors.New("the CNI plugin is not installed yet")
	}
	return i.state
}

func (i *Installer) set(err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.state, i.known = err, true
}

// settle is how long the folder must be quiet: tools that write it write more than
// once. It grows while every look finds something to change, so that two tools
// that both want the last word do not keep a node busy. look is how often the
// folder is looked at without any notice, blindLook how often when there are no
// notices at all: every tool on a node shares what the kernel has of them.
const (
	settle    = 50 * time.Millisecond
	look      = time.Minute
	blindLook = 5 * time.Second
)

// Run installs the plugin, and again whenever the folder or the program has
// changed, until ctx ends. The plugin stays; see Remove.
func (i *Installer) Run(ctx context.Context) error {
	dirs := []string{i.cfg.Folder, i.cfg.BinDir}
	for _, dir := range dirs {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	var events chan fsnotify.Event // nil without notices: nothing is ever read from it
	var lost chan error
	every := look
	if watcher, err := i.watch(dirs); err != nil {
		every = blindLook
		i.cfg.Log.Warn("no file notices, the folders are only looked at", "every", every, "error", err)
	} else {
		defer watcher.Close()
		events, lost = watcher.Events, watcher.Errors
	}
	quiet := settle
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-events:
			next.Reset(quiet)
		case err := <-lost: // an overflow: look for ourselves
			i.cfg.Log.Warn("notices of changes were lost", "error", err)
			next.Reset(quiet)
		case <-next.C:
			if i.bring() > 0 {
				quiet = min(2*quiet, look)
			} else {
				quiet = settle
			}
			next.Reset(every)
		}
	}
}

// watch asks for notices of what changes in folders.
func (i *Installer) watch(dirs []string) (*fsnotify.Watcher, error) {
	watcher, err := i.notify()
	if err != nil {
		return nil, fmt.Errorf("ask the kernel for notices: %w", err)
	}
	for _, dir := range dirs {
		if err := watcher.Add(dir); err != nil {
			_ = watcher.Close()
			return nil, fmt.Errorf("watch %s: %w", dir, err)
		}
	}
	return watcher, nil
}

// bring brings the node up to date, says so when that changes anything, and
// returns the number of changes.
func (i *Installer) bring() int {
	changes, err := i.install()
	before := i.Err()
	i.set(err)
	switch {
	case err != nil && (before == nil || before.Error() != err.Error()):
		i.cfg.Log.Warn("CNI plugin not installed", "folder", i.cfg.Folder, "error", err)
	case err == nil && (len(changes) > 0 || before != nil):
		i.cfg.Log.Info("CNI plugin installed", "folder", i.cfg.Folder, "changes", changes)
	}
	if i.cfg.Told != nil {
		i.cfg.Told(len(changes), err)
	}
	return len(changes)
}

// ErrProgram is that the plugin's program could not be copied.
var ErrProgram = errors.New("copy the plugin's program")

// install copies the program before anything names it.
func (i *Installer) install() ([]Change, error) {
	if err := copyProgram(i.cfg.Binary, filepath.Join(i.cfg.BinDir, filepath.Base(i.cfg.Binary))); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrProgram, err)
	}
	files, err := read(i.cfg.Folder)
	if err != nil {
		return nil, err
	}
	changes, err := Install(files, i.cfg.Options)
	if err != nil {
		return nil, err
	}
	return changes, Apply(i.cfg.Folder, changes)
}

// Remove takes the plugin off the node: first out of the configuration, then its
// program. It is for after Run.
func (i *Installer) Remove() error {
	files, err := read(i.cfg.Folder)
	if err != nil {
		return err
	}
	changes, err := Uninstall(files, i.cfg.Options)
	if err != nil {
		return err
	}
	if err := Apply(i.cfg.Folder, changes); err != nil {
		return err
	}
	err = os.Remove(filepath.Join(i.cfg.BinDir, filepath.Base(i.cfg.Binary)))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// Apply carries a plan out in a folder.
func Apply(folder string, changes []Change) error {
	for _, c := range changes {
		var err error
		switch {
		case c.Write.Name != "":
			err = eligible.Write(filepath.Join(folder, c.Write.Name), c.Write.Content, 0o644)
		case c.Rename != "":
			err = os.Rename(filepath.Join(folder, c.Rename), filepath.Join(folder, c.To))
		default:
			err = os.Remove(filepath.Join(folder, c.Remove))
		}
		if err != nil {
			return fmt.Errorf("%s: %w", c, err)
		}
	}
	return nil
}

// read returns the files of a folder. Those that vanish meanwhile are not there.
func read(folder string) ([]File, error) {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil, err
	}
	var files []File
	for _, e := range entries {
		if e.IsDir() {
			continue
		}
		content, err := os.ReadFile(filepath.Join(folder, e.Name()))
		switch {
		case errors.Is(err, os.ErrNotExist):
		case err != nil:
			return nil, err
		default:
			files = append(files, File{e.Name(), content})
		}
	}
	return files, nil
}

// copyProgram puts a program in place in one step, unless it is there. A program
// that runs at the moment goes on with its old file.
func copyProgram(from, to string) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return fmt.Errorf("the plugin's program: %w", err)
	}
	same, err := holds(to, content)
	if err != nil {
		return err
	}
	if same {
		return nil
	}
	return eligible.Write(to, content, 0o755)
}

// holds reports whether the file at path is executable and has that content.
func holds(path string, content []byte) (bool, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return false, err
	}
	if st.Size() != int64(len(content)) || st.Mode().Perm() != 0o755 {
		return false, nil
	}
	there, err := io.ReadAll(f)
	return bytes.Equal(there, content), err
}
