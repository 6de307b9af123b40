package admission

import (
	"net"
	"net/http"
	"sync"
)

// readers bounds how many requests of one address are being read. Anybody may reach
// the port; whoever fills all places of its own leaves those of others.
type readers struct {
	mu sync.Mutex
	by map[string]*reader // by address; only those with requests
}

// reader is one address.
type reader struct {
	places chan struct{}
	users  int // that have a place, or wait for one
}

// enter waits for a place; false when the caller is gone. Then leave is not called.
func (l *readers) enter(r *http.Request) bool {
	l.mu.Lock()
	one := l.by[address(r)]
	if one == nil {
		one = &reader{places: make(chan struct{}, maxReading)}
		l.by[address(r)] = one
	}
	one.users++
	l.mu.Unlock()
	select {
	case one.places <- struct{}{}:
		return true
	case <-r.Context().Done():
		l.forget(r)
		return false
	}
}

// leave gives a place back.
func (l *readers) leave(r *http.Request) {
	l.mu.Lock()
	one := l.by[address(r)]
	l.mu.Unlock()
	<-one.places
	l.forget(r)
}

func (l *readers) forget(r *http.Request) {
	l.mu.Lock()
	defer l.mu.Unlock()
	one := l.by[address(r)]
	if one.users--; one.users == 0 {
		delete(l.by, address(r))
	}
}

func address(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}
