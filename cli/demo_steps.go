package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/culvert-mesh/culvert/cli/laptop/access"
	"github.com/culvert-mesh/culvert/cli/laptop/echo"
	"github.com/culvert-mesh/culvert/cli/laptop/fetch"
	"github.com/culvert-mesh/culvert/cli/laptop/supervise"
	"github.com/culvert-mesh/culvert/pkg/mesh"
)

func (d *demo) crossNodes(ctx context.Context) error {
	res, err := d.fetch(ctx, "shop/frontend", "http://cart/")
	if err != nil {
		return err
	}
	d.fact(res.OK == 1, "frontend on node-1 calls the cart on node-2", "%s", oneLine(res))
	r, err := d.record(ctx, func(r access.Record) bool {
		return r.Component == "ztunnel-node-2" && r.Direction == "inbound" && strings.HasPrefix(r.SrcWorkload, "frontend-")
	})
	if err != nil {
		return err
	}
	ok := strings.HasSuffix(r.SrcIdentity, "/ns/shop/sa/frontend") && strings.HasSuffix(r.DstIdentity, "/ns/shop/sa/cart")
	d.fact(ok, "the destination's access log has both identities", "%s called %s", r.SrcIdentity, r.DstIdentity)
	return nil
}

// wire sends a secret both ways: outside the mesh, where the tap must see it, and
// inside, where it must not.
func (d *demo) wire(ctx context.Context) error {
	open, secret := marker(), marker()
	if _, err := d.fetch(ctx, "legacy/legacy", "http://legacy/"+open, "-n", "20"); err != nil {
		return err
	}
	res, err := d.fetch(ctx, "shop/frontend", "http://cart/"+secret, "-n", "20", "-H", "x-secret: "+secret)
	if err != nil {
		return err
	}
	for end := time.Now().Add(logPatience); d.tap.Contains(open) == 0 && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	n := d.tap.Contains(open)
	d.fact(n > 0, "control: a request outside the mesh can be read", "in %d of the captured TCP streams", n)
	seen := d.tap.Seen()
	n = d.tap.Contains(secret)
	d.fact(n == 0 && res.OK == 20, "no packet carries the plaintext of the mesh's requests",
		"%d packets, %d bytes captured; %d requests; the secret is in %d of them", seen.Packets, seen.Bytes, res.OK, n)
	tls := d.tap.TLS(mesh.PortHBONE)
	d.fact(tls.Connections > 0 && tls.TLS13 == tls.Connections, "everything to port 15008 is TLS 1.3",
		"%d of %d connections, %d records, %d bytes%s", tls.TLS13, tls.Connections, tls.Records, tls.Bytes, others(tls.Others))
	return nil
}

func others(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return "; others: " + strings.Join(list, "; ")
}

// marker returns a word that nobody else sends.
func marker() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return "culvert-" + hex.EncodeToString(b[:])
}

func (d *demo) policy(ctx context.Context) error {
	res, err := d.fetch(ctx, "shop/cart", "http://payments/")
	if err != nil {
		return err
	}
	d.fact(res.OK == 1, "the cart may", "%s", oneLine(res))
	if res, err = d.fetch(ctx, "shop/frontend", "http://payments/"); err != nil {
		return err
	}
	d.fact(res.Failed == 1, "the frontend may not", "%s", oneLine(res))
	r, err := d.record(ctx, func(r access.Record) bool {
		return r.Direction == "inbound" && r.Error != "" && strings.HasPrefix(r.DstWorkload, "payments-")
	})
	if err != nil {
		return err
	}
	d.fact(strings.Contains(r.Error, "shop/payments-callers"), "the access log names the policy", "%s: %s", r.SrcIdentity, r.Error)
	return nil
}

func (d *demo) strict(ctx context.Context) error {
	res, err := d.fetch(ctx, "legacy/legacy", "http://cart.shop/")
	if err != nil {
		return err
	}
	d.fact(res.Failed == 1, "its plaintext is refused", "%s", oneLine(res))
	return nil
}

// splitRequests is how many requests the split is counted over: enough that 10 %
// differ from 5 and from 16 % almost always.
const splitRequests = 400

func (d *demo) split(ctx context.Context) error {
	res, err := d.fetch(ctx, "shop/frontend", "http://catalog/", "-n", fmt.Sprint(splitRequests), "--by", echo.HeaderVersion)
	if err != nil {
		return err
	}
	share := float64(res.By["v2"]) / splitRequests
	d.fact(res.OK == splitRequests && share > 0.045 && share < 0.165, "nine of ten go to v1", "%s", counts(res))
	return nil
}

func (d *demo) header(ctx context.Context) error {
	res, err := d.fetch(ctx, "shop/frontend", "http://catalog/", "-n", "40", "--by", echo.HeaderVersion, "-H", "x-version: v2")
	if err != nil {
		return err
	}
	d.fact(res.By["v2"] == 40, "with x-version: v2 all go to v2", "%s", counts(res))
	return nil
}

func (d *demo) readOnly(ctx context.Context) error {
	res, err := d.fetch(ctx, "shop/frontend", "http://catalog/items", "-X", "POST", "-d", "a new item")
	if err != nil {
		return err
	}
	d.fact(res.Status[403] == 1, "POST is answered 403", "%s", oneLine(res))
	r, err := d.record(ctx, func(r access.Record) bool { return r.IsRequest() && r.Status == 403 })
	if err != nil {
		return err
	}
	d.fact(r.Method == "POST", "the waypoint's access log has the caller and the reason", "%s %s from %s: %s", r.Method, r.Path, r.SrcIdentity, r.Error)
	return nil
}

// controlPlane kills the control plane three times while pods talk, over L4 and
// through the waypoint, each request on a connection of its own.
func (d *demo) controlPlane(ctx context.Context) error {
	cart := d.load(ctx, "shop/frontend", "http://cart/", "--every", "10ms", "--for", "5s")
	catalog := d.load(ctx, "shop/frontend", "http://catalog/", "--every", "20ms", "--for", "5s")
	killed := 0
	for range 3 {
		pid, err := d.kill(ctx, "controlplane")
		if err != nil {
			return err
		}
		killed++
		if err := d.awaitUnit(ctx, "controlplane", func(s supervise.Status) bool { return s.State == supervise.Ready && s.PID != pid }); err != nil {
			return err
		}
	}
	for _, l := range []struct {
		what string
		load *load
	}{{"requests to the cart", cart}, {"requests through the waypoint", catalog}} {
		res, err := l.load.wait()
		if err != nil {
			return err
		}
		d.fact(res.Sent > 0 && res.Failed == 0, l.what+" while it was killed "+fmt.Sprint(killed)+" times", "%s", counts(res))
	}
	return nil
}

// replace replaces both ztunnels, one after the other, under new connections and
// one long conversation.
func (d *demo) replace(ctx context.Context) error {
	fresh := d.load(ctx, "shop/frontend", "http://cart/", "--every", "5ms", "--for", "6s")
	long := d.load(ctx, "shop/frontend", "tcp://cart:9000", "--every", "10ms", "--for", "6s")
	began := time.Now()
	names, err := d.mesh.Restart(ctx, "ztunnel")
	if err != nil {
		return err
	}
	d.fact(len(names) == 2, "both ztunnels are replaced by successors", "%s in %s", strings.Join(names, ", "), time.Since(began).Round(10*time.Millisecond))
	for _, l := range []struct {
		what string
		load *load
	}{{"new connections meanwhile", fresh}, {"messages on one connection that was open before", long}} {
		res, err := l.load.wait()
		if err != nil {
			return err
		}
		d.fact(res.Sent > 0 && res.Failed == 0, l.what, "%s", counts(res))
	}
	return nil
}

// kill ends a component's process without asking, and returns its number.
func (d *demo) kill(ctx context.Context, name string) (int, error) {
	st, err := d.mesh.Status(ctx)
	if err != nil {
		return 0, err
	}
	for _, c := range st.Components {
		if c.Name == name && c.PID > 0 {
			return c.PID, syscall.Kill(c.PID, syscall.SIGKILL)
		}
	}
	return 0, fmt.Errorf("%s does not run", name)
}

// unitPatience is how long a component may take to come back.
const unitPatience = 20 * time.Second

func (d *demo) awaitUnit(ctx context.Context, name string, cond func(supervise.Status) bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, unitPatience, errors.New(name+" did not come back"))
	defer cancel()
	for {
		st, err := d.mesh.Status(ctx)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(st.Components, func(s supervise.Status) bool { return s.Name == name && cond(s) }) {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// oneLine is what became of one request.
func oneLine(res *fetch.Result) string {
	for code := range res.Status {
		return fmt.Sprintf("HTTP %d after %s", code, res.Slowest.Round(time.Millisecond/10))
	}
	for e := range res.Errors {
		return fmt.Sprintf("%s after %s", e, res.Slowest.Round(time.Millisecond/10))
	}
	return "no answer"
}

// counts is what became of a load.
func counts(res *fetch.Result) string {
	s := fmt.Sprintf("%d sent, %d failed, slowest %s", res.Sent, res.Failed, res.Slowest.Round(time.Millisecond))
	for _, v := range slices.Sorted(maps.Keys(res.By)) {
		s += fmt.Sprintf(", %s %d (%.1f %%)", v, res.By[v], 100*float64(res.By[v])/float64(res.Sent))
	}
	for _, e := range slices.Sorted(maps.Keys(res.Errors)) {
		s += fmt.Sprintf(", %s %d", e, res.Errors[e])
	}
	return s
}
