//go:build kube

package installed

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// asCulvert answers what a script asks `culvert` for. What reads a mesh is asked of the
// program itself, which reads clusters too; what changes one is for kubectl here. It
// returns the exit status.
func asCulvert(args []string) int {
	if len(args) == 0 {
		args = []string{""}
	}
	s := session(filepath.Join(os.Getenv("WORK"), sessionDir))
	if args[0] != "up" && s.read("folder") == "" {
		return said(fmt.Errorf("mesh %q is not running", os.Getenv("CULVERT_NAME")))
	}
	switch args[0] {
	case "up":
		return said(verbUp(s, args[1:]))
	case "restart":
		return said(verbRestart(s, args[1:]))
	case "exec":
		return verbExec(s, args[1:])
	case "ps", "status", "certs", "log", "why":
		return verbRead(s, args[0], args[1:])
	}
	return said(fmt.Errorf("%q is not for a cluster: the script says [laptop]", args[0]))
}

// said tells of an error, and returns the exit status.
func said(err error) int {
	if err == nil {
		return 0
	}
	fmt.Fprintln(os.Stderr, "culvert:", err)
	return 1
}

// verbUp applies a folder and waits until all of it is ready and in the mesh, or out
// of it. Which program a node's ztunnel is cannot be chosen: all are the image's.
func verbUp(s session, args []string) error {
	folder := args[len(args)-1]
	if !filepath.IsAbs(folder) {
		folder = filepath.Join(os.Getenv("WORK"), folder)
	}
	if err := s.note(); err != nil {
		return err
	}
	if err := s.apply(folder); err != nil {
		return err
	}
	if err := s.write("folder", folder); err != nil {
		return err
	}
	for end := time.Now().Add(limit); ; time.Sleep(200 * time.Millisecond) {
		m, err := observe(s)
		if err != nil {
			return err
		}
		waits := m.notReady()
		if len(waits) == 0 {
			if waits, err = s.joining(); err != nil {
				return err
			}
		}
		if len(waits) == 0 {
			fmt.Println("the mesh is ready")
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("after %s not ready: %s", limit, strings.Join(waits, ", "))
		}
	}
}

// state is what `culvert ps` says of the cluster, as far as it is of interest here.
type state struct {
	Components []struct {
		Name, State string
		Restarts    int
	}
	Pods []struct{ Namespace, Name, Mesh string }
}

func (s session) state() (st state, err error) {
	args := s.toCluster("ps", []string{"-o", "json"})
	out, err := exec.Command(realCulvert(), args...).Output()
	if err != nil {
		return st, fmt.Errorf("culvert %s: %w", strings.Join(args, " "), err)
	}
	return st, json.Unmarshal(out, &st)
}

// joining are the script's pods of which it is not settled whether they are in the mesh.
func (s session) joining() (list []string, err error) {
	st, err := s.state()
	for _, p := range st.Pods {
		if p.Mesh == "joining" || p.Mesh == "leaving" {
			list = append(list, "pod "+p.Namespace+"/"+p.Name+" is "+p.Mesh)
		}
	}
	return list, err
}

// note keeps how often components had restarted before, from which scripts count. less
// are the names of those whose counts go on although their pods are replaced.
func (s session) note(less ...string) error {
	st, err := s.state()
	if err != nil {
		return err
	}
	n, before := s.names(), s.restarts()
	now := map[string]int{}
	for _, c := range st.Components {
		if c.State != "stopped" { // the pod is there, but on its way out
			now[n.here(c.Name)] += c.Restarts
		}
	}
	for name, count := range now {
		switch {
		case len(less) == 0:
			before[name] = count
		case slices.ContainsFunc(less, func(l string) bool { return strings.HasPrefix(name, l) }):
			before[name] -= count // a new pod's own count starts at 0
		}
	}
	raw, err := json.Marshal(before)
	if err != nil {
		return err
	}
	return s.write("restarts", string(raw))
}

func (s session) restarts() map[string]int {
	before := map[string]int{}
	if raw := s.read("restarts"); raw != "" {
		_ = json.Unmarshal([]byte(raw), &before)
	}
	return before
}

func realCulvert() string { return os.Getenv("CULVERT_REAL") }

// verbRead asks the program under test, about the script's part of the cluster and in
// its words.
func verbRead(s session, verb string, args []string) int {
	if trouble := s.read("trouble"); verb == "status" && trouble != "" {
		fmt.Printf("%s\nnot healthy\n", s.names().here(trouble))
		return 1
	}
	cmd := exec.Command(realCulvert(), s.toCluster(verb, args)...)
	return attached(cmd, s.names(), s.counted)
}

// podAfter are the flags and the verb whose next argument is a pod.
var podAfter = []string{"--failed", "--level", "--from", "why"}

// toCluster returns the arguments of a reading verb as they are there.
func (s session) toCluster(verb string, args []string) []string {
	n := s.names()
	out := []string{verb, "--kubeconfig", os.Getenv("KUBECONFIG")}
	switch {
	case verb == "ps" || verb == "status":
		for _, space := range n.spaces {
			out = append(out, "--namespace", n.space(space))
		}
	case verb == "log" && len(n.spaces) > 0:
		out = append(out, "--namespace", n.space(n.spaces[0]))
	}
	before := verb
	for _, a := range args {
		if slices.Contains(podAfter, before) && !strings.HasPrefix(a, "-") {
			a = s.target(a)
		}
		before = a
		out = append(out, n.there(a))
	}
	return out
}

// target is a pod, or a component, as the cluster calls it. What is not there keeps the
// script's name, for culvert to say so.
func (s session) target(want string) string {
	if p, err := s.pod(want, false); err == nil {
		return p.Metadata.Namespace + "/" + p.Metadata.Name
	}
	if want == "controlplane" {
		if m, err := observe(s); err == nil && m.find(want) != nil {
			return m.find(want).Metadata.Name
		}
	}
	return want
}

// component is the beginning of a line about one, up to how often it restarted.
var component = regexp.MustCompile(`^((ztunnel-\S+|agent-\S+|controlplane) +[a-z]+ +\d+ +)(\d+)`)

// counted is a line in which restarts are those since `up`.
func (s session) counted(line string) string {
	found := component.FindStringSubmatch(line)
	if found == nil {
		return line
	}
	all, _ := strconv.Atoi(found[3])
	return found[1] + strconv.Itoa(all-s.restarts()[found[2]]) + line[len(found[0]):]
}

// attached runs a command with our own input and outputs, whose lines are turned into
// the script's words, and returns its status.
func attached(cmd *exec.Cmd, n names, also func(string) string) int {
	cmd.Stdin = os.Stdin
	var all sync.WaitGroup
	for _, to := range []struct {
		pipe func() (io.ReadCloser, error)
		out  *os.File
	}{{cmd.StdoutPipe, os.Stdout}, {cmd.StderrPipe, os.Stderr}} {
		from, err := to.pipe()
		if err != nil {
			return said(err)
		}
		all.Go(func() {
			for r := bufio.NewReader(from); ; {
				line, err := r.ReadString('\n')
				fmt.Fprint(to.out, also(n.here(line)))
				if err != nil {
					return
				}
			}
		})
	}
	if err := cmd.Start(); err != nil {
		return said(err)
	}
	all.Wait()
	err := cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return max(exit.ExitCode(), 1)
	}
	return said(err)
}

// verbExec runs a command in a pod. What it touches there appears here as well.
func verbExec(s session, args []string) int {
	if slices.Index(args, "--") != 1 {
		return said(errors.New("exec wants one pod, then --, then a command"))
	}
	p, err := s.pod(args[0], slices.Contains(args, "--touch"))
	if err != nil {
		return said(err)
	}
	n := s.names()
	command := slices.Clone(args[2:])
	for i, word := range command {
		if i > 0 && command[i-1] == "--touch" {
			command[i] = fmt.Sprintf("/touched-%d-%s", os.Getpid(), filepath.Base(word))
			go touched(p.Spec.NodeName, command[i], word)
			continue
		}
		command[i] = n.there(word)
	}
	in := []string{"kubectl", "exec", "-i", "-n", p.Metadata.Namespace, p.Metadata.Name, "--"}
	return attached(exec.Command(kubeProgram(), append(in, command...)...), n, strings.Clone)
}

// pod is one that a script means. Where a folder's own are nobody need be asked, unless
// it is for their nodes.
func (s session) pod(want string, node bool) (*seenObject, error) {
	n := s.names()
	space, name, qualified := strings.Cut(want, "/")
	if !qualified {
		space, name = "", want
	}
	for line := range strings.Lines(s.read("objects")) {
		key, _, _ := strings.Cut(line, " ")
		in, object, _ := strings.Cut(key, ":")
		if !node && object == "Pod/"+name && (space == "" || in == n.space(space)) {
			p := new(seenObject)
			p.Metadata.Namespace, p.Metadata.Name = in, name
			return p, nil
		}
	}
	m, err := observe(s)
	if err != nil {
		return nil, err
	}
	p := m.find(want)
	if p == nil || m.component(p) != "" {
		return nil, fmt.Errorf("there is no pod %q", want)
	}
	return p, nil
}

// touched waits until a file is in the root folder of one of a node's containers, and
// makes one of ours then.
func touched(node, there, here string) {
	for {
		look := exec.Command(kubeProgram(), "exec", node, "sh", "-c", "ls /proc/[0-9]*/root"+there+" 2>/dev/null || true")
		found, err := look.Output()
		if err == nil && len(bytes.TrimSpace(found)) > 0 {
			_ = os.WriteFile(here, nil, 0o644)
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// verbRestart replaces pods as an upgrade does. A DaemonSet is replaced on all of its
// nodes; its old pods stay as long as they have connections, and are not waited for.
func verbRestart(s session, args []string) error {
	for _, target := range args {
		if name, _, _ := strings.Cut(target, "/"); name == "ztunnel" {
			if err := replaceZtunnels(s); err != nil {
				return err
			}
			continue
		}
		ns, name, _ := strings.Cut(target, "/")
		for _, step := range [][]string{{"rollout", "restart"}, {"rollout", "status", "--timeout=" + limit.String()}} {
			if err := kubectlWith("", append(step, "deployment/"+name, "-n", s.names().space(ns))...).err; err != nil {
				return err
			}
		}
		fmt.Println(target, "replaced")
	}
	return nil
}

func replaceZtunnels(s session) error {
	if err := s.note("ztunnel-"); err != nil {
		return err
	}
	before, err := observe(s)
	if err != nil {
		return err
	}
	if err := kubectlWith("", "rollout", "restart", "daemonset/ztunnel", "-n", meshNamespace).err; err != nil {
		return err
	}
	was := map[string]bool{}
	for _, p := range before.pods {
		was[p.Metadata.Name] = true
	}
	for end := time.Now().Add(limit); ; time.Sleep(200 * time.Millisecond) {
		now, err := observe(s)
		if err != nil {
			return err
		}
		fresh, old := map[string]bool{}, 0
		for _, p := range now.pods {
			switch {
			case p.app() != "ztunnel" || p.stopping():
			case was[p.Metadata.Name]:
				old++
			case p.ready():
				fresh[p.Spec.NodeName] = true
			}
		}
		if len(fresh) == 2 && old == 0 {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("after %s there are successors on %d nodes, and %d old ones", limit, len(fresh), old)
		}
	}
}
