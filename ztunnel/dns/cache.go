package dns

import (
	"container/list"
	"encoding/binary"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	maxTTL         = time.Hour        // however long a server says
	maxNegativeTTL = 5 * time.Minute  // of an answer that there is nothing (RFC 2308)
	staleTime      = 10 * time.Minute // an answer outlives its time so long for when no server answers
	staleTTL       = 30               // seconds; of such an answer (RFC 8767)
	maxEntry       = 16 << 10         // bytes; larger answers are not kept
	entryCost      = 256              // bytes that an entry costs beside its message
)

// cache keeps servers' answers as they came. All pods of a node share its bytes,
// and none of its answers: each has a scope of its own.
type cache struct {
	limit int // bytes

	mu     sync.Mutex
	bytes  int
	count  int
	scopes map[*scope]struct{}
}

// scope is one pod's part of the cache.
type scope struct {
	cache *cache
	// guarded by cache.mu
	entries map[cacheKey]*list.Element
	recent  *list.List // most recently used first
	bytes   int
}

// cacheKey is a question to a server.
type cacheKey struct {
	upstream string // the servers that may have answered
	query    string
}

type entry struct {
	key     cacheKey
	msg     []byte
	ttls    []int // offsets of the TTLs in msg
	stored  time.Time
	expires time.Time
}

func (e *entry) cost() int { return len(e.key.query) + len(e.msg) + 8*len(e.ttls) + entryCost }

func newCache(limit int) *cache { return &cache{limit: limit, scopes: map[*scope]struct{}{}} }

func (c *cache) newScope() *scope {
	s := &scope{cache: c, entries: map[cacheKey]*list.Element{}, recent: list.New()}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.scopes[s] = struct{}{}
	return s
}

// close forgets everything of the scope.
func (s *scope) close() {
	s.cache.mu.Lock()
	defer s.cache.mu.Unlock()
	delete(s.cache.scopes, s)
	s.cache.bytes -= s.bytes
	s.cache.count -= len(s.entries)
	s.bytes = 0
	clear(s.entries)
	s.recent.Init()
}

// get returns a copy of an answer with the TTLs of now, or nil. A stale one only if
// that will do.
func (s *scope) get(k cacheKey, now time.Time, stale bool) []byte {
	s.cache.mu.Lock()
	defer s.cache.mu.Unlock()
	el := s.entries[k]
	if el == nil {
		return nil
	}
	e := el.Value.(*entry)
	fresh := now.Before(e.expires)
	switch {
	case !now.Before(e.expires.Add(staleTime)):
		s.removeLocked(el)
		return nil
	case !fresh && !stale:
		return nil
	}
	s.recent.MoveToFront(el)
	return e.at(now, fresh)
}

// at is the message as it is to be told now.
func (e *entry) at(now time.Time, fresh bool) []byte {
	msg := append([]byte(nil), e.msg...)
	age := uint32(now.Sub(e.stored) / time.Second)
	for _, off := range e.ttls {
		ttl := binary.BigEndian.Uint32(msg[off:])
		switch {
		case !fresh:
			ttl = staleTTL
		case ttl > age:
			ttl -= age
		default:
			ttl = 0
		}
		binary.BigEndian.PutUint32(msg[off:], ttl)
	}
	return msg
}

// put keeps an answer for as long as it says, if it says so.
func (s *scope) put(k cacheKey, msg []byte, now time.Time) {
	life, ttls := lifetime(msg)
	if life <= 0 || len(msg) > maxEntry {
		return
	}
	e := &entry{key: k, msg: append([]byte(nil), msg...), ttls: ttls, stored: now, expires: now.Add(life)}
	c := s.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, open := c.scopes[s]; !open || e.cost() > c.limit {
		return
	}
	if el := s.entries[k]; el != nil {
		s.removeLocked(el)
	}
	s.entries[k] = s.recent.PushFront(e)
	s.bytes += e.cost()
	c.bytes += e.cost()
	c.count++
	for c.bytes > c.limit {
		c.evictLocked()
	}
}

// evictLocked makes room where most is used, so that no pod can take the others'.
func (c *cache) evictLocked() {
	var largest *scope
	for s := range c.scopes {
		if largest == nil || s.bytes > largest.bytes {
			largest = s
		}
	}
	largest.removeLocked(largest.recent.Back())
}

func (s *scope) removeLocked(el *list.Element) {
	e := s.recent.Remove(el).(*entry)
	delete(s.entries, e.key)
	s.bytes -= e.cost()
	s.cache.bytes -= e.cost()
	s.cache.count--
}

func (c *cache) size() (entries, bytes int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.count, c.bytes
}

// lifetime returns how long an answer may be kept, 0 for not at all, and where its
// TTLs are: the shortest TTL of its records, or for an answer without any what the
// zone's SOA says (RFC 2308).
func lifetime(msg []byte) (time.Duration, []int) {
	rc := rcode(msg)
	if truncated(msg) || rc != dns.RcodeSuccess && rc != dns.RcodeNameError {
		return 0, nil
	}
	var ttls []int
	shortest, negative, soa := uint32(maxTTL/time.Second), true, false
	for rr, err := range records(msg) {
		switch {
		case err != nil:
			return 0, nil
		case rr.typ == dns.TypeOPT:
			if rr.ttl>>24 != 0 {
				return 0, nil // an extended error code
			}
			continue
		case rr.section == 0:
			negative = negative && rr.typ == dns.TypeCNAME
		case rr.section == 1 && rr.typ == dns.TypeSOA && len(rr.data) >= 22:
			soa = true
			shortest = min(shortest, binary.BigEndian.Uint32(rr.data[len(rr.data)-4:]))
		}
		ttls = append(ttls, rr.ttlAt)
		shortest = min(shortest, rr.ttl)
	}
	negative = negative || rc == dns.RcodeNameError
	life := time.Duration(shortest) * time.Second
	if negative && !soa {
		return 0, nil
	}
	if negative {
		life = min(life, maxNegativeTTL)
	}
	return life, ttls
}
