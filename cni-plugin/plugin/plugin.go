// Package plugin is the chained CNI plugin: what the container runtime calls for
// every pod of the node, after the cluster's own plugins have given it a network.
//
//	runtime ── ADD ──▶ plugin ── POST /cmdadd ──▶ node agent ── 200 ─▶ the pod starts
//	                     │                            └── 4xx, 5xx ─▶ it is tried again
//	                     └─ nobody answers ─▶ eligibility file ─▶ outside: it starts
//	                                                              else: it is tried again
//
// It decides nothing about the mesh: the agent does. It is a process per call,
// small and without a client of the API server, keeps no state, and ends within
// its time limit. Calls may run at the same time.
package plugin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/culvert-mesh/culvert/cni-plugin/eligible"
)

// Type is the plugin's name in a CNI configuration, and its binary's.
const Type = "culvert-cni"

// Config is the plugin's entry in the network configuration. The node agent
// writes it.
type Config struct {
	types.PluginConf
	// Agent is the unix socket of the node agent.
	Agent string `json:"agentSocket"`
	// Eligibility is the file that says who is outside the mesh.
	Eligibility string `json:"eligibilityFile"`
	// SystemNamespace is where the mesh's own pods run. Those whose names begin
	// with one of OwnPods are let pass: the agent could never start otherwise.
	SystemNamespace string   `json:"systemNamespace"`
	OwnPods         []string `json:"ownPods"`
	// TimeoutSeconds bounds a call; 0 means 5.
	TimeoutSeconds int `json:"timeoutSeconds,omitempty"`
}

// Defaults of the configuration.
const (
	DefaultAgent       = "/var/run/culvert-cni/pluginevent.sock"
	DefaultEligibility = "/var/run/culvert-cni/eligibility.json"
	defaultTimeout     = 5 * time.Second
)

// pod is which pod a call is about, as Kubernetes runtimes say in CNI_ARGS.
type pod struct{ namespace, name, uid string }

// podOf reads "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart;…". ok is false for
// whatever is no pod.
func podOf(args string) (p pod, ok bool) {
	for pair := range strings.SplitSeq(args, ";") {
		switch key, value, _ := strings.Cut(pair, "="); key {
		case "K8S_POD_NAMESPACE":
			p.namespace = value
		case "K8S_POD_NAME":
			p.name = value
		case "K8S_POD_UID":
			p.uid = value
		}
	}
	return p, p.namespace != "" && p.name != ""
}

func (p pod) String() string { return p.namespace + "/" + p.name }

// Main is the plugin's process: a call of the runtime, from its environment and
// standard input to an answer on standard output. It returns the process's exit
// code.
func Main() int {
	if err := skel.PluginMainFuncsWithError(calls(), Versions(), "culvert-cni: redirects pods of the mesh"); err != nil {
		err.Print()
		return 1
	}
	return 0
}

// Versions are the versions of the CNI specification that the plugin speaks.
func Versions() version.PluginInfo { return version.VersionsStartingFrom("0.3.1") }

func calls() skel.CNIFuncs {
	return skel.CNIFuncs{Add: add, Del: del, Check: check, GC: gc, Status: status}
}

// parse reads the plugin's entry in the configuration.
func parse(stdin []byte) (Config, error) {
	c := Config{Agent: DefaultAgent, Eligibility: DefaultEligibility, SystemNamespace: "culvert-system", OwnPods: []string{"culvert-cni-", "ztunnel-"}}
	if err := json.Unmarshal(stdin, &c); err != nil {
		return c, types.NewError(types.ErrDecodingFailure, "network configuration", err.Error())
	}
	if err := version.ParsePrevResult(&c.PluginConf); err != nil {
		return c, types.NewError(types.ErrDecodingFailure, "network configuration: prevResult", err.Error())
	}
	return c, nil
}

func (c Config) timeout() time.Duration {
	if c.TimeoutSeconds > 0 {
		return time.Duration(c.TimeoutSeconds) * time.Second
	}
	return defaultTimeout
}

// own reports whether the pod is one of the mesh's own that must never wait for
// the mesh.
func (c Config) own(p pod) bool {
	if p.namespace != c.SystemNamespace {
		return false
	}
	for _, prefix := range c.OwnPods {
		if strings.HasPrefix(p.name, prefix) {
			return true
		}
	}
	return false
}

// add lets a pod start, once the agent has it in the mesh or says that it is
// outside.
func add(args *skel.CmdArgs) error {
	c, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	if p, ok := podOf(args.Args); ok && !c.own(p) {
		if err := c.announce(p, args.ContainerID, args.Netns); err != nil {
			return err
		}
	}
	return c.pass()
}

// pass hands on what the plugins before this one have done.
func (c Config) pass() error {
	if c.PrevResult == nil {
		return types.PrintResult(&current.Result{CNIVersion: current.ImplementedSpecVersion}, c.CNIVersion)
	}
	return types.PrintResult(c.PrevResult, c.CNIVersion)
}

// announcement is the body of /cmdadd.
type announcement struct {
	Netns        string
	PodName      string
	PodNamespace string
	PodUID       string `json:",omitempty"`
	ContainerID  string `json:",omitempty"`
	IPs          []address
}

type address struct {
	Interface *int `json:",omitempty"`
	Address   net.IPNet
	Gateway   net.IP `json:",omitempty"`
}

// announce tells the agent that the pod's network is there, and waits until the
// pod may start.
func (c Config) announce(p pod, sandbox, netns string) error {
	body := announcement{Netns: netns, PodName: p.name, PodNamespace: p.namespace, PodUID: p.uid, ContainerID: sandbox}
	if c.PrevResult != nil {
		result, err := current.NewResultFromResult(c.PrevResult)
		if err != nil {
			return types.NewError(types.ErrDecodingFailure, "network configuration: prevResult", err.Error())
		}
		for _, ip := range result.IPs {
			body.IPs = append(body.IPs, address{ip.Interface, ip.Address, ip.Gateway})
		}
	}
	err := c.call(http.MethodPost, "/cmdadd", body, nil)
	var away *awayError
	if errors.As(err, &away) {
		return c.withoutAgent(p, away)
	}
	return err
}

// withoutAgent decides by the eligibility file.
func (c Config) withoutAgent(p pod, away *awayError) error {
	f, err := eligible.Load(c.Eligibility)
	if err != nil {
		return types.NewError(types.ErrTryAgainLater, fmt.Sprintf("pod %s: %s", p, away),
			fmt.Sprintf("and it is not known whether the pod is in the mesh: %s", err))
	}
	outside, why := f.Outside(p.namespace, p.name, p.uid)
	if outside {
		return nil
	}
	return types.NewError(types.ErrTryAgainLater, fmt.Sprintf("pod %s: %s", p, away),
		fmt.Sprintf("and the pod may not start uncaptured: %s", why))
}

// del lets go of a pod. Whatever happens, the runtime may go on: the agent
// notices by itself that a pod is gone.
func del(args *skel.CmdArgs) error {
	c, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	if p, ok := podOf(args.Args); ok && !c.own(p) {
		_ = c.call(http.MethodPost, "/cmddel", announcement{PodName: p.name, PodNamespace: p.namespace, PodUID: p.uid, ContainerID: args.ContainerID}, nil)
	}
	return nil
}

// podState is what check reads of the agent's status.
type podState struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	InMesh    bool   `json:"inMesh"`
	State     string `json:"state"`
	Error     string `json:"error"`
}

// check fails when a pod of the mesh is not captured.
func check(args *skel.CmdArgs) error {
	c, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	p, ok := podOf(args.Args)
	if !ok || c.own(p) {
		return nil
	}
	var now struct {
		Pods []podState `json:"pods"`
	}
	if err := c.call(http.MethodGet, "/status", nil, &now); err != nil {
		return err
	}
	for _, q := range now.Pods {
		if q.Namespace == p.namespace && q.Name == p.name && q.InMesh && q.State != "enrolled" {
			return types.NewError(types.ErrUnknown, fmt.Sprintf("pod %s is in the mesh and not captured: it is %s", p, q.State), q.Error)
		}
	}
	return nil
}

// gc has nothing to collect: the plugin keeps no state.
func gc(args *skel.CmdArgs) error {
	_, err := parse(args.StdinData)
	return err
}

// status says whether ADD can work. Without an agent it still works for pods
// outside the mesh as long as there is an eligibility file, and a node that is
// said not to work would get no pods at all.
func status(args *skel.CmdArgs) error {
	c, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	asked := c.call(http.MethodGet, "/healthz", nil, nil)
	if asked == nil {
		return nil
	}
	if _, err := eligible.Load(c.Eligibility); err != nil {
		return types.NewError(types.ErrPluginNotAvailable, asked.Error(), err.Error())
	}
	return nil
}

// awayError is that no agent answers.
type awayError struct {
	socket string
	err    error
}

func (e *awayError) Error() string {
	return fmt.Sprintf("the node agent does not answer at %s: %v", e.socket, e.err)
}
func (e *awayError) Unwrap() error { return e.err }

// maxAnswer bounds what is read of an answer, in bytes: the state of a full node
// is well below.
const maxAnswer = 4 << 20

// call asks the agent. No answer is an *awayError; a refusal is a CNI error that
// says whether trying again can help.
func (c Config) call(method, path string, body, answer any) error {
	ctx, cancel := context.WithTimeout(context.Background(), c.timeout())
	defer cancel()
	raw, err := json.Marshal(body)
	if err != nil {
		return types.NewError(types.ErrInternal, path, err.Error())
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://agent"+path, bytes.NewReader(raw))
	if err != nil {
		return types.NewError(types.ErrInternal, path, err.Error())
	}
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", c.Agent)
		},
	}}
	resp, err := client.Do(req)
	if err != nil {
		return &awayError{c.Agent, errors.Unwrap(err)} // without the URL, which means nothing
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return &awayError{c.Agent, err}
	}
	return verdict(resp.StatusCode, text, answer)
}

// verdict turns the agent's answer into what the runtime understands.
func verdict(code int, text []byte, answer any) error {
	switch {
	case code >= 500:
		return types.NewError(types.ErrTryAgainLater, "node agent", strings.TrimSpace(string(text)))
	case code != http.StatusOK:
		return types.NewError(types.ErrInternal, "node agent refused the request", strings.TrimSpace(string(text)))
	case answer == nil:
		return nil
	}
	if err := json.Unmarshal(text, answer); err != nil {
		return types.NewError(types.ErrDecodingFailure, "node agent's answer", err.Error())
	}
	return nil
}
