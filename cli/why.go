package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/cli/laptop"
	"github.com/culvert-mesh/culvert/cli/laptop/explain"
	"github.com/culvert-mesh/culvert/cli/laptop/pod"
	"github.com/culvert-mesh/culvert/ztunnel/why"
)

func whyCommand(e *env) *cobra.Command {
	c := &cobra.Command{
		Use:   "why POD HOST:PORT",
		Short: "Would a connection be let through, and because of what? Exit status 1 when not",
		Long: `Would a connection be let through, and because of what? Exit status 1 when not.

Asks the ztunnels at both ends what they would do with a connection from POD to
HOST:PORT, with what they know at this moment and with the functions that decide
about real connections. Nothing is sent to HOST.

POD is NAMESPACE/NAME, a NAME that is unique, or the name of a Deployment. HOST is
a name as the pod would write it, or an address.`,
		Example: "  culvert why frontend cart:80\n  culvert why --from shop/frontend --to cart.shop:80 -o json",
		Args:    cobra.MaximumNArgs(2),
	}
	mesh, out := readerFlagsOf(e, c), outputFlag(c)
	var from, to string
	c.Flags().StringVar(&from, "from", "", "the pod that calls, in the place of POD")
	c.Flags().StringVar(&to, "to", "", "what it calls, in the place of HOST:PORT")
	c.RunE = func(c *cobra.Command, args []string) error {
		q, err := parseWhy(from, to, args)
		if err != nil {
			return err
		}
		client, err := mesh.open(c.Context())
		if err != nil {
			return err
		}
		x, err := explainTo(c.Context(), client, q)
		if err != nil {
			return err
		}
		if err := out.write(e.stdout, x, x.Print); err != nil {
			return err
		}
		if x.Verdict != explain.Allowed {
			return exitStatus(1)
		}
		return nil
	}
	return c
}

// whyQuestion is what a person asks.
type whyQuestion struct {
	pod, host string
	port      uint16
}

// parseWhy takes both forms: flags, and arguments for what no flag says.
func parseWhy(from, to string, args []string) (whyQuestion, error) {
	rest := args
	for _, v := range []*string{&from, &to} {
		if *v == "" && len(rest) > 0 {
			*v, rest = rest[0], rest[1:]
		}
	}
	if from == "" || to == "" || len(rest) > 0 {
		return whyQuestion{}, laptop.WithHint(errors.New("why wants one pod and one destination"), "culvert why POD HOST:PORT")
	}
	host, port, err := splitDestination(to)
	return whyQuestion{from, host, port}, err
}

// splitDestination takes HOST:PORT, or a URL that people have at hand.
func splitDestination(to string) (host string, port uint16, err error) {
	bad := func() error {
		return laptop.WithHint(fmt.Errorf("%q is no destination", to), "HOST:PORT, such as cart.shop:80 or [fd00::1]:80")
	}
	if u, err := url.Parse(to); err == nil && u.Host != "" {
		to = u.Host
		if u.Port() == "" {
			defaults := map[string]string{"http": "80", "https": "443"}
			to = net.JoinHostPort(u.Hostname(), defaults[u.Scheme])
		}
	}
	host, text, err := net.SplitHostPort(to)
	if err != nil || host == "" {
		return "", 0, bad()
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 {
		return "", 0, bad()
	}
	return host, uint16(n), nil
}

// explainTo resolves the destination as the pod would, and follows the connection.
func explainTo(ctx context.Context, client meshReader, q whyQuestion) (explain.Explanation, error) {
	st, err := client.Status(ctx)
	if err != nil {
		return explain.Explanation{}, err
	}
	p, err := findPod(st, q.pod)
	if err != nil {
		return explain.Explanation{}, err
	}
	to := net.JoinHostPort(q.host, strconv.Itoa(int(q.port)))
	start := explain.Start{Pod: why.Pod{Namespace: p.Namespace, Name: p.Name, ServiceAccount: p.Account}, Waypoint: p.Mesh == laptop.MeshWaypoint, Node: p.Node}
	var lookup *explain.Lookup
	ip, err := netip.ParseAddr(q.host)
	if err != nil {
		if lookup, err = lookUp(ctx, client, st, p, q.host); err != nil {
			return explain.Explanation{}, err
		}
		if len(lookup.Addresses) == 0 {
			return unknownName(start, to, lookup, st), nil
		}
		ip = lookup.Addresses[0]
	}
	start.Dst = netip.AddrPortFrom(ip.Unmap(), q.port)
	x, err := explain.Follow(ctx, meshOf{client, st}, start)
	x.To, x.Lookup = to, lookup
	return x, err
}

// unknownName is the explanation when there is no address to call.
func unknownName(s explain.Start, to string, l *explain.Lookup, st *laptop.Status) explain.Explanation {
	x := explain.Explanation{
		From: s.Pod.String(), To: to, Lookup: l, Verdict: explain.Unreachable, Reason: "unknown destination", Error: l.Error, Hops: []explain.Hop{},
	}
	first, _, _ := strings.Cut(l.Host, ".")
	for _, svc := range st.Services {
		if svc.Name == first || svc.Namespace+"/"+svc.Name == l.Host {
			x.Change = append(x.Change, fmt.Sprintf("there is a service %s.%s: call it by that name", svc.Name, svc.Namespace))
		}
	}
	if x.Change == nil {
		x.Change = []string{"a service, or a ServiceEntry, with that name; culvert ps lists the services"}
	}
	return x
}

// lookUp resolves a name as the pod would.
func lookUp(ctx context.Context, client meshReader, st *laptop.Status, p *laptop.PodStatus, host string) (*explain.Lookup, error) {
	if _, ok := client.(*laptop.Client); ok {
		return lookUpIn(ctx, p, host)
	}
	return lookUpService(st, p.Namespace, host), nil
}

// lookUpService resolves a service's name without entering a pod, which a cluster's
// pods have no program for: NAME, NAME.NAMESPACE, and either with the usual endings.
func lookUpService(st *laptop.Status, namespace, host string) *explain.Lookup {
	l := &explain.Lookup{Host: host, Addresses: []netip.Addr{}}
	parts := strings.Split(strings.TrimSuffix(host, "."), ".")
	if len(parts) > 1 {
		namespace = parts[1]
	}
	for _, s := range st.Services {
		if s.Name != parts[0] || s.Namespace != namespace || len(parts) > 2 && parts[2] != "svc" {
			continue
		}
		for _, a := range s.Addrs {
			if ip, err := netip.ParseAddr(a); err == nil {
				l.Addresses = append(l.Addresses, ip)
			}
		}
	}
	if len(l.Addresses) == 0 {
		l.Error = "no service of the cluster with an address has that name; for another one give the address"
	}
	return l
}

// lookUpIn resolves a name inside a pod, with the pod's own resolv.conf: an error
// is that it could not be tried.
func lookUpIn(ctx context.Context, p *laptop.PodStatus, host string) (*explain.Lookup, error) {
	var stdout, stderr bytes.Buffer
	_, err := pod.Exec(ctx, pod.ExecSpec{PID: p.PID, Command: []string{"culvert", "component", "lookup", host}, Env: slices.Clone(p.Env), Stdout: &stdout, Stderr: &stderr})
	l := new(explain.Lookup)
	if err == nil {
		err = json.Unmarshal(stdout.Bytes(), l)
	}
	if err != nil {
		return nil, fmt.Errorf("look up %s in pod %s/%s: %w %s", host, p.Namespace, p.Name, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return l, nil
}

// lookupMain resolves a name where it runs, and writes an explain.Lookup.
func lookupMain(ctx context.Context, args, _ []string, out io.Writer) error {
	if len(args) != 1 {
		return errors.New("lookup: want one name")
	}
	l := explain.Lookup{Host: args[0], Addresses: []netip.Addr{}}
	addrs, err := (&net.Resolver{PreferGo: true}).LookupNetIP(ctx, "ip", args[0])
	for _, a := range addrs {
		l.Addresses = append(l.Addresses, a.Unmap())
	}
	if err != nil {
		l.Error = err.Error()
	}
	return json.NewEncoder(out).Encode(l)
}

// meshOf asks a running mesh.
type meshOf struct {
	client meshReader
	st     *laptop.Status
}

// Ask implements explain.Mesh.
func (m meshOf) Ask(ctx context.Context, node string, q why.Question) (a why.Answer, err error) {
	body, err := json.Marshal(q)
	if err != nil {
		return a, err
	}
	answer, err := m.client.Admin(ctx, "ztunnel-"+node, http.MethodPost, "/debug/why", body)
	if err != nil {
		return a, fmt.Errorf("ask the ztunnel of %s: %w", node, err)
	}
	return a, json.Unmarshal(answer, &a)
}

// Held implements explain.Mesh.
func (m meshOf) Held(ctx context.Context, p why.Pod, identity string) string {
	var dump struct {
		Certificates []heldCert `json:"certificates"`
	}
	answer, err := m.client.Admin(ctx, p.String(), http.MethodGet, "/config_dump", nil)
	if err != nil || json.Unmarshal(answer, &dump) != nil {
		return ""
	}
	for _, c := range dump.Certificates {
		if c.Identity != identity {
			continue
		}
		state, _, _ := strings.Cut(c.State, "\n")
		if len(c.CertChain) > 0 {
			state += ", valid until " + c.CertChain[0].ExpirationTime.UTC().Format(time.RFC3339)
		}
		return state
	}
	return "not held"
}

// Listens implements explain.Mesh.
func (m meshOf) Listens(p why.Pod, port uint16) (listens, known bool) {
	for _, s := range m.st.Pods {
		if s.Namespace == p.Namespace && s.Name == p.Name && s.PID != 0 {
			listens, err := laptop.Listens(s.PID, port)
			return listens, err == nil
		}
	}
	return false, false
}
