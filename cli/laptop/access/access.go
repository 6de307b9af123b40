// Package access reads the access lines that the mesh's proxies write into their
// log files, and merges those of several proxies into one stream.
//
//	logs/ztunnel-node-1.log ─┐
//	logs/ztunnel-node-2.log ─┼─▶ Record{Component, Time, fields…} ─▶ in order of time
//	logs/pod_shop_waypoint… ─┘
//
// Records are values; the functions are safe for concurrent use.
package access

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/culvert-mesh/culvert/cli/laptop/logfile"
)

// Record is one access line: a connection of a ztunnel, or a request of a waypoint.
type Record struct {
	Component string    `json:"component"`
	Time      time.Time `json:"time"`
	Level     string    `json:"level"`
	Message   string    `json:"message"`

	SrcAddr      string `json:"src.addr,omitempty"`
	SrcWorkload  string `json:"src.workload,omitempty"`
	SrcNamespace string `json:"src.namespace,omitempty"`
	SrcIdentity  string `json:"src.identity,omitempty"`
	DstAddr      string `json:"dst.addr,omitempty"`
	DstHBONE     string `json:"dst.hbone_addr,omitempty"`
	DstService   string `json:"dst.service,omitempty"`
	DstWorkload  string `json:"dst.workload,omitempty"`
	DstNamespace string `json:"dst.namespace,omitempty"`
	DstIdentity  string `json:"dst.identity,omitempty"`
	Direction    string `json:"direction,omitempty"`
	BytesSent    uint64 `json:"bytes_sent"`
	BytesRecv    uint64 `json:"bytes_recv"`
	Duration     string `json:"duration,omitempty"`
	Error        string `json:"error,omitempty"`

	Method    string `json:"method,omitempty"`
	Authority string `json:"authority,omitempty"`
	Path      string `json:"path,omitempty"`
	Status    int    `json:"status,omitempty"`
	Flags     string `json:"flags,omitempty"`
	Route     string `json:"route,omitempty"`
	Upstream  string `json:"upstream,omitempty"`
}

// Parse reads one line of a log; ok is false for lines that are not access lines.
func Parse(component string, line []byte) (r Record, ok bool) {
	if !bytes.Contains(line, []byte(`"scope":"access"`)) {
		return Record{}, false
	}
	if err := json.Unmarshal(line, &r); err != nil {
		return Record{}, false
	}
	r.Component = component
	return r, true
}

// IsRequest reports whether r is an HTTP request of a waypoint.
func (r Record) IsRequest() bool { return r.Method != "" || r.Status != 0 }

// String is the record as one line for people.
func (r Record) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s", r.Time.Local().Format("15:04:05.000"), strings.TrimPrefix(r.Component, "ztunnel-"))
	if r.IsRequest() {
		fmt.Fprintf(&b, " %s %s%s %d", r.Method, r.Authority, r.Path, r.Status)
	} else {
		fmt.Fprintf(&b, " %-8s", r.Direction)
	}
	fmt.Fprintf(&b, " %s → %s", party(r.SrcNamespace, r.SrcWorkload, r.SrcAddr), party(r.DstNamespace, r.DstWorkload, cmp.Or(r.DstHBONE, r.DstAddr)))
	if r.DstService != "" {
		fmt.Fprintf(&b, " (%s)", r.DstService)
	}
	if r.SrcIdentity != "" {
		fmt.Fprintf(&b, " as %s", r.SrcIdentity)
	}
	asked, answered := r.bytes()
	fmt.Fprintf(&b, " %d→ %d← bytes %s", asked, answered, r.Duration)
	if r.Error != "" {
		fmt.Fprintf(&b, " %s %s", r.failure(), r.Error)
	}
	return b.String()
}

// bytes are those that went towards the destination, and those that came back. What
// a proxy calls sent depends on which side it stands on.
func (r Record) bytes() (asked, answered uint64) {
	if r.Direction == "outbound" {
		return r.BytesSent, r.BytesRecv
	}
	return r.BytesRecv, r.BytesSent
}

// failure tells a connection that never was from one that ended before its time.
func (r Record) failure() string {
	if r.BytesSent+r.BytesRecv > 0 {
		return "BROKEN"
	}
	return "REFUSED"
}

// Short is the record as one short line: what came of it before who it was.
func (r Record) Short() string {
	verdict := "ok"
	switch {
	case r.IsRequest():
		verdict = strconv.Itoa(r.Status)
	case r.Error != "":
		verdict = r.failure()
	}
	line := fmt.Sprintf("%s %-7s %s → %s", r.Time.Local().Format("15:04:05"), verdict,
		cmp.Or(shortPod(r.SrcWorkload), r.SrcAddr), cmp.Or(shortPod(r.DstWorkload), r.DstHBONE, r.DstAddr))
	if r.IsRequest() {
		line += " " + r.Method + " " + r.Path
	} else {
		line += " " + r.Direction
	}
	if r.Error != "" {
		line += ": " + r.Error
	}
	return line + " " + r.SrcIdentity
}

// shortPod is a pod's name without the hash and the suffix that a Deployment adds.
func shortPod(name string) string {
	parts := strings.Split(name, "-")
	if n := len(parts); n > 2 && len(parts[n-1]) == 5 && len(parts[n-2]) == 8 {
		return strings.Join(parts[:n-2], "-")
	}
	return name
}

func party(ns, name, addr string) string {
	switch {
	case name == "":
		return cmp.Or(addr, "?")
	case addr == "":
		return ns + "/" + name
	}
	return ns + "/" + name + " " + addr
}

// files returns the log files of a folder that may hold access lines, by component.
func files(dir string) map[string]string {
	out := map[string]string{}
	for _, pattern := range []string{"ztunnel-*.log", "pod_*.log"} {
		paths, _ := filepath.Glob(filepath.Join(dir, pattern))
		for _, p := range paths {
			component := strings.TrimSuffix(filepath.Base(p), ".log")
			if name, isPod := strings.CutPrefix(component, "pod_"); isPod { // named as everywhere else
				component = strings.Replace(name, "_", "/", 1)
			}
			out[component] = p
		}
	}
	return out
}

// Read returns the records of all logs in a folder, in order of time.
func Read(dir string) ([]Record, error) {
	var all []Record
	for component, path := range files(dir) {
		err := logfile.Lines(path, func(line []byte) {
			if r, ok := Parse(component, line); ok {
				all = append(all, r)
			}
		})
		if err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(all, func(a, b Record) int { return a.Time.Compare(b.Time) })
	return all, nil
}

// lookPeriod is how often Follow looks for logs of new pods.
const lookPeriod = 500 * time.Millisecond

// Follow calls record with each record that is written from now on, one at a
// time, until ctx ends. Logs that appear later are followed too.
func Follow(ctx context.Context, dir string, record func(Record)) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	defer wg.Wait()
	known := map[string]bool{}
	for {
		for component, path := range files(dir) {
			if known[component] {
				continue
			}
			known[component] = true
			wg.Go(func() {
				_ = logfile.Follow(ctx, path, func(line []byte) {
					if r, ok := Parse(component, line); ok {
						mu.Lock()
						defer mu.Unlock()
						record(r)
					}
				})
			})
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(lookPeriod):
		}
	}
}
