package proxy

import (
	"context"
	"io"
	"math/rand/v2"
	"time"

	"github.com/culvert-mesh/culvert/waypoint/config"
	"github.com/culvert-mesh/culvert/waypoint/http"
)

// maxMirrors bounds how many copies are under way; what is beyond is not sent.
const maxMirrors = 1024

// mirrorTime is how long a copy's answer is waited for.
const mirrorTime = 30 * time.Second

// mirrored reports whether the route sends copies of its requests.
func (s *session) mirrored() bool {
	return s.route != nil && s.route.Forward != nil && len(s.route.Forward.Mirrors) > 0
}

// mirror sends copies of the request to where the route wants them. Nobody waits
// for their answers, which are read and forgotten. Requests whose body is long, or
// of unknown length, are not copied.
func (s *session) mirror() {
	if !s.mirrored() || s.req.Upgrade != nil || s.req.Body != nil && s.kept == nil {
		return
	}
	for _, m := range s.route.Forward.Mirrors {
		cl := s.snap.Clusters[m.Cluster]
		if cl == nil || rand.Uint32N(1_000_000) >= m.Millionths {
			continue
		}
		if s.p.mirrors.Add(1) > maxMirrors {
			s.p.mirrors.Add(-1)
			continue
		}
		c := &mirrorCopy{p: s.p, cluster: cl}
		c.req.CopyHead(&s.req)
		if s.kept != nil {
			c.req.Body = &fixed{rest: s.kept, length: int64(len(s.kept))}
		}
		leave := s.p.enter()
		go c.run(leave)
	}
}

// mirrorCopy is a request's copy on its way.
type mirrorCopy struct {
	p       *Proxy
	cluster *config.Cluster
	req     http.Request
	resp    http.Response
}

func (c *mirrorCopy) run(leave func()) {
	defer leave()
	defer c.p.mirrors.Add(-1)
	ctx, cancel := context.WithTimeout(context.Background(), mirrorTime)
	defer cancel()
	_ = c.send(ctx) // a copy that fails concerns nobody
}

func (c *mirrorCopy) send(ctx context.Context) error {
	ep, err := c.p.cfg.Clusters.Pick(c.cluster)
	if err != nil {
		return err
	}
	ep.Begin()
	defer ep.End()
	up, err := c.p.upstream(ctx, c.req.Version, ep, c.cluster, false)
	if err != nil {
		return err
	}
	until, _ := ctx.Deadline()
	_ = up.SetReadDeadline(until)
	_ = up.SetWriteDeadline(until)
	if err := c.exchange(up.HTTP); err != nil || !up.HTTP.Reusable() || clearDeadlines(up) != nil {
		return up.Close()
	}
	c.p.cfg.Upstream.Put(up)
	return nil
}

// carrier is what a copy is sent on.
type carrier interface {
	WriteRequest(*http.Request) (bodyErr, writeErr error)
	ReadResponse(*http.Request, *http.Response) error
}

func (c *mirrorCopy) exchange(up carrier) error {
	if _, err := up.WriteRequest(&c.req); err != nil {
		return err
	}
	for c.resp.Status < 200 {
		if err := up.ReadResponse(&c.req, &c.resp); err != nil {
			return err
		}
	}
	if c.resp.Body == nil {
		return nil
	}
	_, err := io.Copy(io.Discard, reader{c.resp.Body})
	return err
}
