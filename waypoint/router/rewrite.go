package router

import (
	"strconv"
	"strings"

	"github.com/culvert-mesh/culvert/waypoint/config"
	"github.com/culvert-mesh/culvert/waypoint/http"
)

// Rewrite changes path and host of a request as its route asks.
func Rewrite(r *config.Route, req *http.Request) {
	f := r.Forward
	switch {
	case f.PrefixRewrite != "":
		req.SetPath(replacePrefix(&r.Path, req.Path(), f.PrefixRewrite))
	case f.RegexRewrite != nil:
		req.SetPath(f.RegexRewrite.ReplaceAll(req.Path(), []byte(f.Substitution)))
	}
	if f.HostRewrite != "" {
		req.SetAuthority([]byte(f.HostRewrite))
	}
}

// replacePrefix replaces what the path match compared: the whole path for an
// exact match, the prefix otherwise.
func replacePrefix(p *config.PathMatch, path []byte, by string) []byte {
	n := min(len(p.Value), len(path))
	if p.Kind == config.PathRegex {
		n = len(path)
	}
	rest := path[n:]
	if by == "/" && len(rest) > 0 && rest[0] == '/' {
		by = "" // "/a" replaced by "/" in "/a/b" is "/b"
	}
	out := append([]byte(by), rest...)
	if len(out) == 0 || out[0] != '/' {
		out = append([]byte{'/'}, out...)
	}
	return out
}

// Location is the target of a redirect of req.
func Location(r *config.Route, req *http.Request) string {
	d := r.Redirect
	scheme := d.Scheme
	if scheme == "" {
		scheme = req.Scheme
	}
	host := d.Host
	if host == "" {
		host = string(req.Host())
		if d.Port == 0 && d.Scheme == "" {
			host = string(req.Authority())
		}
	}
	if d.Port != 0 && !(scheme == "http" && d.Port == 80) && !(scheme == "https" && d.Port == 443) {
		host += ":" + strconv.FormatUint(uint64(d.Port), 10)
	}
	path := string(req.Path())
	switch {
	case strings.Contains(d.Path, "?"):
		return scheme + "://" + host + d.Path
	case d.Path != "":
		path = d.Path
	case d.PrefixRewrite != "":
		path = string(replacePrefix(&r.Path, req.Path(), d.PrefixRewrite))
	}
	if q := req.Query(); q != nil && !d.StripQuery {
		path += "?" + string(q)
	}
	return scheme + "://" + host + path
}
