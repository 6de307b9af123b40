//go:build kube

package installed

import (
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/culvert-mesh/culvert/cli/laptop/access"
)

// asCulvert answers what a script asks `culvert` for, from the cluster, in the words
// that the verbs have on a laptop. It returns the exit status.
func asCulvert(args []string) int {
	if len(args) == 0 {
		args = []string{""}
	}
	s := session(filepath.Join(os.Getenv("WORK"), sessionDir))
	verb, ok := map[string]func(session, []string) error{
		"up": verbUp, "down": verbDown, "ps": verbPs, "status": verbStatus, "log": verbLog, "certs": verbCerts, "restart": verbRestart,
	}[args[0]]
	var err error
	switch {
	case args[0] == "exec":
		var code int
		if code, err = verbExec(s, args[1:]); err == nil {
			return code
		}
	case !ok:
		err = fmt.Errorf("%q is not for a cluster: the script says [laptop]", args[0])
	case args[0] != "up" && s.read("folder") == "":
		err = fmt.Errorf("mesh %q is not running", os.Getenv("CULVERT_NAME"))
	default:
		err = verb(s, args[1:])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "culvert:", err)
		return 1
	}
	return 0
}

// verbUp applies a folder and waits until all pods of it are ready.
func verbUp(s session, args []string) error {
	folder := args[len(args)-1]
	if !filepath.IsAbs(folder) {
		folder = filepath.Join(os.Getenv("WORK"), folder)
	}
	text, err := readFolder(folder)
	if err != nil {
		return err
	}
	if err := s.write("since", time.Now().UTC().Format(time.RFC3339Nano)); err != nil {
		return err
	}
	m, err := observe(s)
	if err != nil {
		return err
	}
	before, err := json.Marshal(m.restarts())
	if err != nil {
		return err
	}
	if err := s.write("restarts", string(before)); err != nil {
		return err
	}
	if err := s.apply(text); err != nil {
		return err
	}
	if err := s.write("folder", folder); err != nil {
		return err
	}
	for end := time.Now().Add(limit); ; time.Sleep(200 * time.Millisecond) {
		if m, err = observe(s); err != nil {
			return err
		}
		waits := m.notReady()
		if len(waits) == 0 {
			fmt.Println("the mesh is ready")
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("after %s not ready: %s", limit, strings.Join(waits, ", "))
		}
	}
}

func verbDown(s session, _ []string) error { return s.takeDown() }

func verbPs(s session, args []string) error {
	m, err := observe(s)
	if err != nil {
		return err
	}
	if slices.Contains(args, "json") {
		enc := json.NewEncoder(os.Stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(m.asJSON())
	}
	m.print(os.Stdout)
	return nil
}

// verbStatus: was everything applied, and does the mesh say of all of it that it holds?
func verbStatus(s session, _ []string) error {
	m, err := observe(s)
	if err != nil {
		return err
	}
	problems := append(m.conditions(), m.notReady()...)
	if trouble := s.read("trouble"); trouble != "" {
		problems = append(problems, trouble)
	}
	if len(problems) > 0 {
		fmt.Println(strings.Join(problems, "\n"))
		return fmt.Errorf("not healthy")
	}
	fmt.Println("configuration: accepted\nhealthy")
	return nil
}

// verbExec runs a command in a pod. What it touches there appears here as well.
func verbExec(s session, args []string) (int, error) {
	dash := slices.Index(args, "--")
	if dash != 1 {
		return 0, fmt.Errorf("exec wants one pod, then --, then a command")
	}
	m, err := observe(s)
	if err != nil {
		return 0, err
	}
	p := m.find(args[0])
	if p == nil {
		return 0, fmt.Errorf("there is no pod %q", args[0])
	}
	command := slices.Clone(args[2:])
	if i := slices.Index(command, "--touch"); i >= 0 && i+1 < len(command) {
		file := command[i+1]
		command[i+1] = fmt.Sprintf("/touched-%d-%s", os.Getpid(), filepath.Base(file))
		go touched(p.Spec.NodeName, command[i+1], file)
	}
	return kubectlAttached(append([]string{"exec", "-i", "-n", p.Metadata.Namespace, p.Metadata.Name, "--"}, command...)...), nil
}

// touched waits until a file is in the root folder of one of a node's containers, and
// makes one of ours then.
func touched(node, there, here string) {
	look := `until ls /proc/[0-9]*/root` + there + ` >/dev/null 2>&1; do sleep 0.05; done`
	if exec.Command(kubeProgram(), "exec", node, "sh", "-c", look).Run() == nil {
		_ = os.WriteFile(here, nil, 0o644)
	}
}

// verbLog prints the access lines of all proxies since `up`.
func verbLog(s session, args []string) error {
	fl := flag.NewFlagSet("log", flag.ContinueOnError)
	failures := fl.Bool("errors", false, "")
	direction, pod := fl.String("direction", "", ""), fl.String("pod", "", "")
	if err := fl.Parse(args); err != nil {
		return err
	}
	m, err := observe(s)
	if err != nil {
		return err
	}
	var all []access.Record
	for _, p := range m.proxies() {
		r := kubectlWith("", "logs", "-n", p.Metadata.Namespace, p.Metadata.Name, "--since-time="+s.read("since"))
		for line := range strings.Lines(r.stdout) {
			rec, ok := access.Parse(p.component(), []byte(line))
			if ok && (!*failures || rec.Error != "" || rec.Status >= 400) && (*direction == "" || rec.Direction == *direction) &&
				strings.Contains(rec.SrcNamespace+"/"+rec.SrcWorkload+" "+rec.DstNamespace+"/"+rec.DstWorkload, *pod) {
				all = append(all, rec)
			}
		}
	}
	slices.SortStableFunc(all, func(a, b access.Record) int { return a.Time.Compare(b.Time) })
	for _, r := range all[max(0, len(all)-50):] {
		fmt.Println(r)
	}
	return nil
}

// verbCerts prints what the ztunnels hold, as their admin interface says.
func verbCerts(s session, _ []string) error {
	m, err := observe(s)
	if err != nil {
		return err
	}
	for _, p := range m.proxies() {
		if !strings.HasPrefix(p.component(), "ztunnel-") {
			continue
		}
		var dump struct {
			Certificates []struct {
				Identity, State string
			} `json:"certificates"`
		}
		if err := m.admin(p, "/config_dump", &dump); err != nil {
			return err
		}
		for _, c := range dump.Certificates {
			fmt.Println(p.component(), cmp.Or(c.Identity, "?"), c.State)
		}
	}
	return nil
}

// forwarded is what kubectl prints once a port can be used.
var forwarded = regexp.MustCompile(`127\.0\.0\.1:(\d+)`)

// admin asks a ztunnel's admin interface, which listens for its own pod alone.
func (m *mesh) admin(p *podObject, path string, into any) error {
	cmd := exec.Command(kubeProgram(), "kubectl", "port-forward", "-n", p.Metadata.Namespace, p.Metadata.Name, ":15000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // kubectl is a child of it
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return err
	}
	defer func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); _ = cmd.Wait() }()
	line := make([]byte, 4096)
	n, err := out.Read(line)
	port := forwarded.FindSubmatch(line[:n])
	if err != nil || port == nil {
		return fmt.Errorf("port-forward to %s: %q %v", p.Metadata.Name, line[:n], err)
	}
	answer, err := (&http.Client{Timeout: limit}).Get("http://127.0.0.1:" + string(port[1]) + path)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	raw, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	return json.Unmarshal(raw, into)
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
		for _, step := range [][]string{{"rollout", "restart"}, {"rollout", "status", "--timeout=60s"}} {
			if err := kubectlWith("", append(step, "deployment/"+name, "-n", ns)...).err; err != nil {
				return err
			}
		}
		fmt.Println(target, "replaced")
	}
	return nil
}

func replaceZtunnels(s session) error {
	before, err := observe(s)
	if err != nil {
		return err
	}
	if err := kubectlWith("", "rollout", "restart", "daemonset/ztunnel", "-n", meshNamespace).err; err != nil {
		return err
	}
	for end := time.Now().Add(limit); ; time.Sleep(200 * time.Millisecond) {
		now, err := observe(s)
		if err != nil {
			return err
		}
		fresh := map[string]bool{}
		for _, p := range now.pods {
			if old := before.find(p.Metadata.Namespace + "/" + p.Metadata.Name); p.app() == "ztunnel" && old == nil && p.ready() {
				fresh[p.Spec.NodeName] = true
			}
		}
		if len(fresh) == 2 {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("after %s there are successors on %d nodes", limit, len(fresh))
		}
	}
}
