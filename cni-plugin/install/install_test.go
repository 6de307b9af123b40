package install

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fsnotify/fsnotify"
)

// node is a node's folders, with an installer running on them.
type node struct {
	t         *testing.T
	cfg       Config
	installer *Installer
	stop      func()
}

func newNode(t *testing.T) *node {
	t.Helper()
	dir := t.TempDir()
	n := &node{t: t, cfg: Config{
		Folder: filepath.Join(dir, "net.d"), BinDir: filepath.Join(dir, "bin"), Binary: filepath.Join(dir, "image", "culvert-cni"),
		Options: Options{Entry: entry}, Log: slog.New(slog.DiscardHandler),
	}}
	n.put(n.cfg.Binary, "program 1")
	return n
}

func (n *node) put(path, content string) {
	n.t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) net(content string) { n.put(filepath.Join(n.cfg.Folder, "10-net.conflist"), content) }

func (n *node) run() {
	n.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	n.installer = New(n.cfg)
	go func() { done <- n.installer.Run(ctx) }()
	stopped := false
	n.stop = func() {
		if cancel(); stopped {
			return
		}
		stopped = true
		if err := <-done; err != nil {
			n.t.Errorf("installer: %v", err)
		}
	}
	n.t.Cleanup(n.stop)
}

// await waits until the runtime would call the plugin, and the program is this.
func (n *node) await(program string) {
	n.t.Helper()
	n.until(func() bool {
		conf, _ := os.ReadFile(filepath.Join(n.cfg.Folder, "10-net.conflist"))
		there, _ := os.ReadFile(filepath.Join(n.cfg.BinDir, "culvert-cni"))
		return bytes.Contains(conf, []byte("culvert-cni")) && string(there) == program && n.installer.Err() == nil
	})
}

func (n *node) until(cond func() bool) {
	n.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(2 * time.Minute)
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			n.t.Fatalf("waited in vain; installer says %v", n.installer.Err())
		}
	}
}

const other = `{"name": "net", "plugins": [{"type": "ptp"}]}`

// The plugin is put back when another tool writes the configuration, deletes it
// and writes it again, or removes the program; and goes without a trace.
func TestKept(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.run()
	n.until(func() bool { // the cluster's own network comes later
		_, err := os.Stat(filepath.Join(n.cfg.BinDir, "culvert-cni"))
		return err == nil && n.installer.Err() != nil
	})
	n.net(other)
	n.await("program 1")
	n.net(other)
	n.await("program 1")
	if err := os.Remove(filepath.Join(n.cfg.Folder, "10-net.conflist")); err != nil {
		t.Fatal(err)
	}
	n.until(func() bool { return n.installer.Err() != nil })
	n.net(other)
	n.await("program 1")
	if err := os.Remove(filepath.Join(n.cfg.BinDir, "culvert-cni")); err != nil {
		t.Fatal(err)
	}
	n.await("program 1")
	n.net(`{"name": "half`)
	n.until(func() bool { return n.installer.Err() != nil })
	n.net(other)
	n.await("program 1")
	n.stop()

	if err := n.installer.Remove(); err != nil {
		t.Fatal(err)
	}
	conf, _ := os.ReadFile(filepath.Join(n.cfg.Folder, "10-net.conflist"))
	if bytes.Contains(conf, []byte("culvert")) {
		t.Errorf("after removal: %s", conf)
	}
	for _, dir := range []string{n.cfg.Folder, n.cfg.BinDir} {
		if left, _ := os.ReadDir(dir); len(left) != map[string]int{n.cfg.Folder: 1, n.cfg.BinDir: 0}[dir] {
			t.Errorf("left in %s: %v", dir, left)
		}
	}
	if err := n.installer.Remove(); err != nil {
		t.Errorf("removed twice: %v", err)
	}
}

// A newer agent brings a newer program.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.net(other)
	n.run()
	n.await("program 1")
	n.stop()
	n.put(n.cfg.Binary, "program 2")
	n.run()
	n.await("program 2")
	st, err := os.Stat(filepath.Join(n.cfg.BinDir, "culvert-cni"))
	if err != nil || st.Mode().Perm() != 0o755 {
		t.Errorf("program %v, %v", st, err)
	}
}

func TestNoProgram(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.net(other)
	if err := os.Remove(n.cfg.Binary); err != nil {
		t.Fatal(err)
	}
	n.run()
	n.until(func() bool {
		err := n.installer.Err()
		return err != nil && bytes.Contains([]byte(err.Error()), []byte("the plugin's program"))
	})
	conf, _ := os.ReadFile(filepath.Join(n.cfg.Folder, "10-net.conflist"))
	if string(conf) != other {
		t.Errorf("a configuration that names a program that is not there: %s", conf)
	}
}

// A node whose tools have used up what the kernel has of file notices keeps its
// plugin all the same.
func TestNoNotices(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		n.net(other)
		n.installer = New(n.cfg)
		n.installer.notify = func() (*fsnotify.Watcher, error) { return nil, syscall.EMFILE }
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- n.installer.Run(ctx) }()
		n.await("program 1")
		n.net(other)
		n.await("program 1")
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
