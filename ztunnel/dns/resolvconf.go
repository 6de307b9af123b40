package dns

import (
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"
)

// SystemServers returns a function that tells the name servers of a resolv.conf(5),
// as the file is at present: it is looked at again every few seconds.
func SystemServers(path string) func() []netip.AddrPort {
	f := &resolvConf{path: path}
	return f.servers
}

// resolvPause is how long the file is taken to be as it was.
const resolvPause = 5 * time.Second

type resolvConf struct {
	path string

	mu      sync.Mutex
	looked  time.Time
	changed time.Time
	list    []netip.AddrPort // never modified
}

func (f *resolvConf) servers() []netip.AddrPort {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	if now.Sub(f.looked) < resolvPause {
		return f.list
	}
	f.looked = now
	st, err := os.Stat(f.path)
	if err != nil || st.ModTime().Equal(f.changed) {
		return f.list // what was true is better than nothing
	}
	if text, err := os.ReadFile(f.path); err == nil {
		f.list, f.changed = parseResolvConf(string(text)), st.ModTime()
	}
	return f.list
}

func parseResolvConf(text string) (list []netip.AddrPort) {
	for line := range strings.Lines(text) {
		w := strings.Fields(line)
		if len(w) < 2 || w[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(w[1]); err == nil {
			list = append(list, netip.AddrPortFrom(a.Unmap(), 53))
		}
	}
	return list
}
