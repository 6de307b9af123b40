package fetch

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// resolvConf names the pod's name servers.
const resolvConf = "/etc/resolv.conf"

// lookup is what a dns:// URL asks for.
type lookup struct {
	name   string
	qtype  uint16
	server string // address and port
	tcp    bool
}

func parseLookup(u *url.URL) (lookup, error) {
	l := lookup{name: dns.Fqdn(u.Host), qtype: dns.TypeA}
	q := u.Query()
	if t := q.Get("type"); t != "" {
		var ok bool
		if l.qtype, ok = dns.StringToType[strings.ToUpper(t)]; !ok {
			return l, fmt.Errorf("fetch %s: there is no record type %q", u, t)
		}
	}
	if l.qtype == dns.TypePTR {
		if reverse, err := dns.ReverseAddr(u.Hostname()); err == nil {
			l.name = reverse
		}
	}
	l.tcp = q.Has("tcp")
	if l.server = q.Get("at"); l.server == "" {
		conf, err := dns.ClientConfigFromFile(resolvConf)
		if err != nil || len(conf.Servers) == 0 {
			return l, fmt.Errorf("fetch %s: no name server in %s: %w", u, resolvConf, err)
		}
		l.server = conf.Servers[0]
	}
	if _, _, err := net.SplitHostPort(l.server); err != nil {
		l.server = net.JoinHostPort(l.server, "53")
	}
	return l, nil
}

func (r *run) dns(ctx context.Context, u *url.URL) error {
	l, err := parseLookup(u)
	if err != nil {
		return err
	}
	return r.pace(ctx, func(ctx context.Context) { r.lookup(ctx, l) })
}

func (r *run) lookup(ctx context.Context, l lookup) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.opt.Timeout)
	defer cancel()
	began := time.Now()
	m, err := l.exchange(ctx, r.opt.Timeout)
	if err == nil && m.Rcode != dns.RcodeSuccess {
		err = errors.New(describe(m))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.count(began, err)
	if err == nil && r.opt.single() {
		r.res.Answer = &Answer{Status: dns.RcodeToString[m.Rcode], Body: []byte(records(m))}
	}
}

// exchange asks over UDP, and again over TCP when the answer did not fit.
func (l lookup) exchange(ctx context.Context, timeout time.Duration) (*dns.Msg, error) {
	q := new(dns.Msg).SetQuestion(l.name, l.qtype)
	q.SetEdns0(dns.DefaultMsgSize, false)
	c := dns.Client{Timeout: timeout}
	if l.tcp {
		c.Net = "tcp"
	}
	m, _, err := c.ExchangeContext(ctx, q, l.server)
	if err == nil && m.Truncated && !l.tcp {
		c.Net = "tcp"
		m, _, err = c.ExchangeContext(ctx, q, l.server)
	}
	return m, err
}

// describe is why there is no answer: the code, and the server's words.
func describe(m *dns.Msg) string {
	s := dns.RcodeToString[m.Rcode]
	if opt := m.IsEdns0(); opt != nil {
		for _, o := range opt.Option {
			if ede, ok := o.(*dns.EDNS0_EDE); ok {
				s += ": " + ede.ExtraText
			}
		}
	}
	return s
}

// records are the answer's records without their TTLs, in order.
func records(m *dns.Msg) string {
	var lines []string
	for _, rr := range m.Answer {
		h := rr.Header()
		lines = append(lines, fmt.Sprintf("%s %s %s\n", h.Name, dns.TypeToString[h.Rrtype], strings.TrimPrefix(rr.String(), h.String())))
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}
