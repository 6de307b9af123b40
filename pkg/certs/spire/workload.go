package spire

import (
	"context"
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// followOwn reads our own identity from the Workload API until it ends.
func (i *Issuer) followOwn(ctx context.Context, st *stream, worked func()) error {
	err := i.watchOwn(ctx, st, worked)
	if ctx.Err() == nil {
		i.failed(st, explain(err))
	}
	return fmt.Errorf("%s: %w", st.id, err)
}

func (i *Issuer) watchOwn(ctx context.Context, st *stream, worked func()) error {
	client, err := workloadapi.New(ctx, workloadapi.WithAddr(workloadURL(i.cfg.WorkloadSocket)))
	if err != nil {
		return err
	}
	defer client.Close()
	return client.WatchX509Context(ctx, &own{i: i, st: st, worked: worked})
}

// workloadURL is the form that the library wants.
func workloadURL(s string) string {
	if strings.Contains(s, ":") {
		return s
	}
	return "unix://" + s
}

// own is told of our certificates and the bundles that count for them.
type own struct {
	i      *Issuer
	st     *stream
	worked func()
}

// OnX509ContextUpdate implements workloadapi.X509ContextWatcher.
func (o *own) OnX509ContextUpdate(c *workloadapi.X509Context) {
	o.worked()
	m, err := pickOwn(c, o.st.id)
	if err != nil {
		o.i.failed(o.st, err)
		return
	}
	o.i.got(o.st, m)
}

// OnX509ContextWatchError implements workloadapi.X509ContextWatcher. The library
// tries again by itself.
func (o *own) OnX509ContextWatchError(err error) {
	o.i.failed(o.st, explain(err))
	o.i.cfg.Log.Warn("stream from SPIRE broke", "identity", o.st.id.String(), "error", err)
}

func pickOwn(c *workloadapi.X509Context, id mesh.Identity) (*material, error) {
	var others []string
	for _, s := range c.SVIDs {
		if s.ID.String() != id.String() {
			others = append(others, s.ID.String())
			continue
		}
		m := &material{key: s.PrivateKey, chain: s.Certificates, bundles: make(bundles)}
		for _, b := range c.Bundles.Bundles() {
			td := b.TrustDomain().Name()
			m.bundles[td] = b.X509Authorities()
			m.federates = append(m.federates, td)
		}
		return m, nil
	}
	return nil, fmt.Errorf("SPIRE takes us for %s", strings.Join(others, ", "))
}
