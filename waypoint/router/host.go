package router

import (
	"bytes"
	"slices"
	"strings"

	"github.com/culvert-mesh/culvert/waypoint/config"
	"github.com/culvert-mesh/culvert/waypoint/http"
)

// host is one virtual host's routes, indexed by path. Every list of indices is
// in ascending order, which is the order of precedence.
type host struct {
	routes    []config.Route
	exact     map[string][]int
	prefixes  map[string][]int // prefixes of any length in lengths
	lengths   []int            // ascending
	separated map[string][]int // whole segments
	others    []int            // expressions, and comparisons without case
}

func compileHost(vh *config.VirtualHost) *host {
	h := &host{routes: vh.Routes, exact: map[string][]int{}, prefixes: map[string][]int{}, separated: map[string][]int{}}
	for i := range vh.Routes {
		switch p := &vh.Routes[i].Path; {
		case p.IgnoreCase || p.Kind == config.PathRegex:
			h.others = append(h.others, i)
		case p.Kind == config.PathExact:
			h.exact[p.Value] = append(h.exact[p.Value], i)
		case p.Kind == config.PathSeparatedPrefix:
			h.separated[p.Value] = append(h.separated[p.Value], i)
		default:
			h.prefixes[p.Value] = append(h.prefixes[p.Value], i)
			if !slices.Contains(h.lengths, len(p.Value)) {
				h.lengths = append(h.lengths, len(p.Value))
			}
		}
	}
	slices.Sort(h.lengths)
	return h
}

// search looks for the route of the lowest index.
type search struct {
	h    *host
	req  *http.Request
	path []byte
	best int
}

// route returns the first route that matches.
func (h *host) route(req *http.Request) *config.Route {
	s := search{h: h, req: req, path: req.Path(), best: len(h.routes)}
	if len(h.exact) > 0 {
		s.try(h.exact[string(s.path)], false)
	}
	for _, n := range h.lengths {
		if n > len(s.path) {
			break
		}
		s.try(h.prefixes[string(s.path[:n])], false)
	}
	if len(h.separated) > 0 {
		s.trySegments()
	}
	s.try(h.others, true)
	if s.best == len(h.routes) {
		return nil
	}
	return &h.routes[s.best]
}

// trySegments looks up each part of the path that ends before a '/' or at the end.
func (s *search) trySegments() {
	for end := 1; end <= len(s.path); end++ {
		if end == len(s.path) || s.path[end] == '/' {
			s.try(s.h.separated[string(s.path[:end])], false)
		}
	}
}

// try takes the first of list that matches, if it precedes the best so far.
func (s *search) try(list []int, path bool) {
	for _, i := range list {
		if i >= s.best {
			return
		}
		if matches(&s.h.routes[i], s.req, s.path, path) {
			s.best = i
			return
		}
	}
}

func matches(r *config.Route, req *http.Request, path []byte, checkPath bool) bool {
	if checkPath && !pathMatches(&r.Path, path) {
		return false
	}
	for i := range r.Headers {
		if !r.Headers[i].Match(req) {
			return false
		}
	}
	for i := range r.Query {
		if !r.Query[i].Match(req.Query()) {
			return false
		}
	}
	return true
}

func pathMatches(p *config.PathMatch, path []byte) bool {
	if p.Kind == config.PathRegex {
		return p.Regexp.Match(path)
	}
	value := p.Value
	if p.IgnoreCase {
		path, value = bytes.ToLower(path), strings.ToLower(value)
	}
	switch p.Kind {
	case config.PathExact:
		return string(path) == value
	case config.PathSeparatedPrefix:
		n := len(value)
		return len(path) >= n && string(path[:n]) == value && (len(path) == n || path[n] == '/')
	}
	return len(path) >= len(value) && string(path[:len(value)]) == value
}
