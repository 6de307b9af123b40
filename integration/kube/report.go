package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Bounds of what a report shows: a person reads it, in the output of a test that failed.
const (
	reportLimit  = 30 * time.Second // of each question
	reportEvents = 60               // lines
	reportLog    = 20               // lines of each container
)

// report writes what is needed to find out why something does not work on the cluster:
// nodes, pods, the latest events, the last lines of pods that are not well and of the
// mesh's. A cluster that is not up is said to be so.
func report(l layout, out io.Writer) {
	if _, err := firstProcess(l, control); err != nil {
		fmt.Fprintln(out, "kube: nothing to report:", err)
		return
	}
	fmt.Fprintln(out, "kube: report of the cluster", time.Now().UTC().Format(time.RFC3339))
	for _, question := range [][]string{
		{"get", "nodes", "-o", "wide"},
		{"get", "nodes", "-o", `jsonpath={range .items[*]}{.metadata.name}{range .status.conditions[*]}{"\n  "}{.type}={.status} {.reason} {.message}{end}{"\n"}{end}`},
		{"get", "pods,daemonsets,deployments", "-A", "-o", "wide"},
	} {
		fmt.Fprintf(out, "--- kubectl %s\n%s", strings.Join(question, " "), ask(l, question...))
	}
	events := strings.SplitAfter(ask(l, "get", "events", "-A", "--sort-by=.lastTimestamp"), "\n")
	fmt.Fprintf(out, "--- the last events\n%s", strings.Join(events[max(0, len(events)-reportEvents):], ""))
	for _, p := range unwell(ask(l, "get", "pods", "-A", "--no-headers")) {
		logs := ask(l, "logs", "-n", p[0], p[1], "--all-containers", "--prefix", fmt.Sprintf("--tail=%d", reportLog))
		fmt.Fprintf(out, "--- log of %s/%s\n%s", p[0], p[1], logs)
	}
	for _, p := range places() {
		ended, err := os.ReadFile(l.node(p.name, "log", "init.log"))
		if err == nil && len(ended) > 0 {
			fmt.Fprintf(out, "--- programs of %s that ended\n%s", p.name, ended)
		}
	}
}

// unwell are the pods, as namespace and name, of which a log may say something: the
// mesh's and all that are not ready. The lines are kubectl's.
func unwell(lines string) (pods [][2]string) {
	for line := range strings.Lines(lines) {
		f := strings.Fields(line)
		if len(f) < 4 {
			continue
		}
		ready, of, _ := strings.Cut(f[2], "/")
		if f[0] == "culvert-system" || ready != of && f[3] != "Completed" {
			pods = append(pods, [2]string{f[0], f[1]})
		}
	}
	return pods
}

func ask(l layout, args ...string) string {
	ctx, cancel := context.WithTimeout(context.Background(), reportLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, l.bin("kubectl"), append(args, "--request-timeout=10s")...)
	cmd.Env = l.environment("KUBECONFIG=" + l.kubeconfig("admin"))
	out, err := cmd.CombinedOutput()
	text := string(out)
	if err != nil {
		text += err.Error()
	}
	if !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	return text
}

// keep copies the logs of the cluster's programs and of its pods to a folder, which is
// made anew.
func keep(l layout, to string) error {
	if _, err := os.Stat(l.cluster()); err != nil {
		return nil // there is no cluster
	}
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	var errs []error
	for _, p := range places() {
		for _, dir := range []string{"log", "root/var/log/pods"} {
			err := os.CopyFS(filepath.Join(to, p.name, filepath.Base(dir)), onlyFiles{os.DirFS(l.node(p.name, dir))})
			if !errors.Is(err, fs.ErrNotExist) { // a place without it
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// onlyFiles is a file system without links, which CopyFS takes exception to.
type onlyFiles struct{ fs.FS }

// ReadDir implements fs.ReadDirFS.
func (o onlyFiles) ReadDir(name string) ([]fs.DirEntry, error) {
	list, err := fs.ReadDir(o.FS, name)
	return slices.DeleteFunc(list, func(d fs.DirEntry) bool { return !d.IsDir() && !d.Type().IsRegular() }), err
}
