package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/cli/laptop"
	"github.com/culvert-mesh/culvert/cli/laptop/pod"
)

func execCommand(e *env) *cobra.Command {
	c := &cobra.Command{
		Use:   "exec POD -- CMD [ARG...]",
		Short: "Run a command inside a pod: its network, names and processes",
		Long: `Run a command inside a pod: its network, names and processes.

POD is NAMESPACE/NAME, a NAME that is unique, or the name of a Deployment, which
means one of its pods. The pod finds this program as "culvert".`,
		Example: "  culvert exec frontend -- culvert fetch http://cart/",
	}
	name, out := nameFlag(e, c), outputFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		if c.ArgsLenAtDash() != 1 {
			return laptop.WithHint(fmt.Errorf("exec wants one pod, then --, then a command"), "culvert exec POD -- CMD")
		}
		command := args[1:]
		client, err := laptop.NewClient(*name)
		if err != nil {
			return err
		}
		st, err := client.Status(c.Context())
		if err != nil {
			return err
		}
		p, err := findPod(st, args[0])
		if err != nil {
			return err
		}
		if out.format == "text" {
			return execIn(e, p, command)
		}
		return execRecorded(e, out, p, command)
	}
	return c
}

// execution is what a command in a pod did, for -o json.
type execution struct {
	Pod      string   `json:"pod"`
	Node     string   `json:"node"`
	Command  []string `json:"command"`
	ExitCode int      `json:"exit_code"`
	Stdout   string   `json:"stdout"`
	Stderr   string   `json:"stderr"`
}

// execRecorded runs a command and writes what it did as one value. Its status
// is ours, as without it.
func execRecorded(e *env, out *output, p *laptop.PodStatus, command []string) error {
	var stdout, stderr bytes.Buffer
	inner := &env{stdin: e.stdin, stdout: &stdout, stderr: &stderr, environ: e.environ}
	err := execIn(inner, p, command)
	var status exitStatus
	if err != nil && !errors.As(err, &status) {
		return err
	}
	x := execution{p.Namespace + "/" + p.Name, p.Node, command, int(status), stdout.String(), stderr.String()}
	if werr := out.write(e.stdout, x, nil); werr != nil {
		return werr
	}
	return err
}

func execIn(e *env, p *laptop.PodStatus, command []string) error {
	env := slices.Clone(p.Env)
	if term := pod.Getenv(e.environ, "TERM"); term != "" {
		env = append(env, "TERM="+term)
	}
	// Signals go to the command, which decides what they mean.
	status, err := pod.Exec(context.Background(), pod.ExecSpec{PID: p.PID, Command: command, Env: env, Stdin: e.stdin, Stdout: e.stdout, Stderr: e.stderr})
	if err != nil {
		return fmt.Errorf("exec in pod %s/%s: %w", p.Namespace, p.Name, err)
	}
	if status != 0 {
		return exitStatus(status)
	}
	return nil
}

// findPod returns the running pod that a person means.
func findPod(st *laptop.Status, want string) (*laptop.PodStatus, error) {
	ns, name, qualified := strings.Cut(want, "/")
	if !qualified {
		ns, name = "", want
	}
	var exact, owned, prefixed []*laptop.PodStatus
	for i := range st.Pods {
		p := &st.Pods[i]
		if ns != "" && p.Namespace != ns || p.Stopping {
			continue
		}
		switch {
		case p.Name == name:
			exact = append(exact, p)
		case p.Deployment == name:
			owned = append(owned, p)
		case strings.HasPrefix(p.Name, name):
			prefixed = append(prefixed, p)
		}
	}
	found := exact
	if len(found) == 0 {
		found = owned[:min(1, len(owned))]
		for _, p := range owned {
			if p.Ready {
				found = []*laptop.PodStatus{p}
				break
			}
		}
	}
	if len(found) == 0 {
		found = prefixed
	}
	switch {
	case len(found) == 0:
		return nil, laptop.WithHint(fmt.Errorf("there is no pod %q", want), "culvert ps lists them")
	case len(found) > 1:
		return nil, laptop.WithHint(fmt.Errorf("%q means several pods", want), "name one of: %s", podNames(found))
	case found[0].PID == 0 && !found[0].Running: // on a cluster nobody knows its process
		return nil, fmt.Errorf("pod %s/%s does not run: %s", found[0].Namespace, found[0].Name, found[0].Message)
	}
	return found[0], nil
}

func podNames(pods []*laptop.PodStatus) string {
	var names []string
	for _, p := range pods {
		names = append(names, p.Namespace+"/"+p.Name)
	}
	return strings.Join(names, ", ")
}
