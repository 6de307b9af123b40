package install

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/culvert-mesh/culvert/cli/laptop/access"
)

// linesPerProxy is how far back each proxy's log is read: not every line is one of
// access, and not every one of these is wanted.
const linesPerProxy = 5000

// AccessLog reads the newest access lines of all proxies, oldest first. all = 0 reads
// their whole logs.
func (m *Mesh) AccessLog(ctx context.Context, all int) (records []access.Record, err error) {
	opts := corev1.PodLogOptions{}
	if all > 0 {
		lines := int64(linesPerProxy)
		opts.TailLines = &lines
	}
	var mu sync.Mutex
	err = m.logs(ctx, opts, func(r access.Record) {
		mu.Lock()
		defer mu.Unlock()
		records = append(records, r)
	})
	slices.SortStableFunc(records, func(a, b access.Record) int { return a.Time.Compare(b.Time) })
	return records, err
}

// FollowAccessLog calls record, from one goroutine at a time, with what proxies that
// run now write until ctx ends.
func (m *Mesh) FollowAccessLog(ctx context.Context, record func(access.Record)) error {
	var none int64
	var mu sync.Mutex
	return m.logs(ctx, corev1.PodLogOptions{Follow: true, TailLines: &none}, func(r access.Record) {
		mu.Lock()
		defer mu.Unlock()
		record(r)
	})
}

// logs reads the logs of all proxies at once.
func (m *Mesh) logs(ctx context.Context, opts corev1.PodLogOptions, record func(access.Record)) error {
	pods, err := m.c.Client.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return explain("list pods", err)
	}
	var all sync.WaitGroup
	errs := make(chan error, len(pods.Items))
	for _, p := range pods.Items {
		name := p.Namespace + "/" + p.Name
		switch {
		case p.Status.Phase != corev1.PodRunning:
			continue
		case p.Namespace == m.c.Namespace && p.Labels["app"] == proxyName:
			name = proxyName + "-" + p.Spec.NodeName
		case !IsWaypoint(p.Labels["gateway.networking.k8s.io/gateway-class-name"]):
			continue
		}
		all.Go(func() {
			stream, err := m.c.Client.CoreV1().Pods(p.Namespace).GetLogs(p.Name, &opts).Stream(ctx)
			if err != nil {
				errs <- fmt.Errorf("log of %s: %w", name, err)
				return
			}
			defer stream.Close()
			scan(stream, name, record)
		})
	}
	all.Wait()
	close(errs)
	if ctx.Err() != nil {
		return nil
	}
	return <-errs
}

func scan(r io.Reader, component string, record func(access.Record)) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		rec, ok := access.Parse(component, lines.Bytes())
		if !ok {
			rec, ok = parsePlain(component, lines.Text())
		}
		if ok {
			record(rec)
		}
	}
}

// parsePlain reads an access line of the plain format, in which the charts have proxies
// write unless they are told otherwise.
func parsePlain(component, line string) (r access.Record, ok bool) {
	head := strings.SplitN(line, "\t", 5)
	if len(head) < 5 || head[2] != "access" {
		return r, false
	}
	fields := map[string]any{"time": head[0], "level": head[1], "message": head[3]}
	for rest := head[4]; rest != ""; {
		var key, value string
		key, rest, ok = strings.Cut(strings.TrimLeft(rest, " "), "=")
		if !ok {
			break
		}
		if quoted, err := strconv.QuotedPrefix(rest); err == nil {
			value, _ = strconv.Unquote(quoted)
			rest = rest[len(quoted):]
		} else {
			value, rest, _ = strings.Cut(rest, " ")
		}
		fields[key] = value
		if n, err := strconv.ParseUint(value, 10, 64); err == nil && slices.Contains([]string{"bytes_sent", "bytes_recv", "status"}, key) {
			fields[key] = n
		}
	}
	text, err := json.Marshal(fields)
	if err != nil || json.Unmarshal(text, &r) != nil {
		return access.Record{}, false
	}
	r.Component = component
	return r, true
}
