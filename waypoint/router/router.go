// Package router finds the route of a request. It is pure: a table is compiled
// once from configuration and then only read.
//
//	authority ─▶ virtual host   exact, *.suffix (longest), prefix.* (longest), *
//	path      ─▶ candidates     by exact path, by prefix, and the few others
//	              └ the first in the table's order whose headers and query match too
//
// A table's order decides, as it was given: the control plane writes the Gateway
// API's precedence into it. The index only saves looking at routes whose path
// cannot match, so that a table of thousands costs as much as one of ten.
//
// Tables are immutable and safe for concurrent use; Route allocates nothing.
package router

import (
	"fmt"
	"strings"

	"github.com/culvert-mesh/culvert/waypoint/config"
	"github.com/culvert-mesh/culvert/waypoint/http"
)

// Table is a compiled config.RouteTable.
type Table struct {
	source *config.RouteTable
	plain  domains // compared with the whole authority
	ported domains // "*.host:*": compared with the host of an authority that has a port
}

// domains finds a virtual host by name.
type domains struct {
	exact    map[string]*host
	suffixes []domain // "*.example", longest first
	prefixes []domain // "a.*", longest first
	any      *host
}

type domain struct {
	text string
	host *host
}

// Compile builds the table. A domain that two virtual hosts claim is an error.
func Compile(t *config.RouteTable) (*Table, error) {
	out := &Table{source: t}
	for i := range t.Hosts {
		vh := &t.Hosts[i]
		h := compileHost(vh)
		for _, d := range vh.Domains {
			d = strings.ToLower(d)
			to := &out.plain
			if name, ok := strings.CutSuffix(d, ":*"); ok && strings.HasPrefix(d, "*") {
				to, d = &out.ported, name // "a:*" is an ordinary prefix
			}
			if !to.add(d, h) {
				return nil, fmt.Errorf("domain %q is in two virtual hosts, the second is %q", d, vh.Name)
			}
		}
	}
	return out, nil
}

func (t *domains) add(d string, h *host) bool {
	switch {
	case d == "*":
		if t.any != nil {
			return false
		}
		t.any = h
	case strings.HasPrefix(d, "*"):
		return insert(&t.suffixes, domain{d[1:], h})
	case strings.HasSuffix(d, "*"):
		return insert(&t.prefixes, domain{d[:len(d)-1], h})
	default:
		if t.exact[d] != nil {
			return false
		}
		if t.exact == nil {
			t.exact = make(map[string]*host)
		}
		t.exact[d] = h
	}
	return true
}

// insert keeps list ordered from long to short.
func insert(list *[]domain, d domain) bool {
	at := len(*list)
	for i, o := range *list {
		if o.text == d.text {
			return false
		}
		if len(o.text) < len(d.text) && at == len(*list) {
			at = i
		}
	}
	*list = append(*list, domain{})
	copy((*list)[at+1:], (*list)[at:])
	(*list)[at] = d
	return true
}

// Source returns what the table was compiled from, for dumps.
func (t *Table) Source() *config.RouteTable { return t.source }

// Route implements config.Routes.
func (t *Table) Route(req *http.Request) *config.Route {
	h := t.host(req)
	if h == nil {
		return nil
	}
	return h.route(req)
}

func (t *Table) host(req *http.Request) *host {
	if t.plain.onlyAny() && t.ported.onlyAny() {
		return t.plain.any
	}
	var space [256]byte
	name := req.Authority()
	if len(name) > len(space) {
		return t.plain.any
	}
	lower := space[:len(name)]
	for i, c := range name {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		lower[i] = c
	}
	bare := http.StripPort(lower)
	if t.source.IgnorePort {
		return t.plain.find(bare, true)
	}
	if h := t.plain.find(lower, false); h != nil {
		return h
	}
	if len(bare) < len(lower) {
		if h := t.ported.find(bare, true); h != nil {
			return h
		}
	}
	return t.plain.any
}

func (t *domains) onlyAny() bool { return len(t.exact)+len(t.suffixes)+len(t.prefixes) == 0 }

// find returns the host of the most specific domain; the one for any name only
// if asked for.
func (t *domains) find(name []byte, orAny bool) *host {
	if h := t.exact[string(name)]; h != nil {
		return h
	}
	for _, d := range t.suffixes {
		if n := len(name) - len(d.text); n > 0 && string(name[n:]) == d.text {
			return d.host
		}
	}
	for _, d := range t.prefixes {
		if n := len(d.text); n < len(name) && string(name[:n]) == d.text {
			return d.host
		}
	}
	if orAny {
		return t.any
	}
	return nil
}
