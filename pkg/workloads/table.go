package workloads

import (
	"slices"
	"sync/atomic"
)

// Shards are addressed by the top bits of a hash, slots by the low bits.
const (
	shardBits  = 10
	shardCount = 1 << shardBits
	minSlots   = 4
)

// table is a multimap from hashes to pointers. It keeps no keys: a value that is
// found under the right hash is compared by who looks it up. Readers need no
// lock; there is one writer at a time, see edit.
type table[T any] struct {
	shards [shardCount]atomic.Pointer[shard[T]]
}

// shard is an open-addressed table with linear probing. Published, it never
// changes. The low half of each value's hash is kept, so that most values of
// another key are passed over, and all can be moved, without looking at them.
type shard[T any] struct {
	tags []uint32
	vals []*T
	n    int
}

// cursor walks the values under one hash.
type cursor[T any] struct {
	s   *shard[T]
	tag uint32
	at  uint32
}

func (t *table[T]) find(h uint64) cursor[T] {
	return cursor[T]{s: t.shards[h>>(64-shardBits)].Load(), tag: uint32(h), at: uint32(h)}
}

// next returns the next value under the cursor's hash, or nil after the last.
func (c *cursor[T]) next() *T {
	if c.s == nil {
		return nil
	}
	mask := uint32(len(c.s.vals) - 1)
	for {
		i := c.at & mask
		v := c.s.vals[i]
		if v == nil {
			return nil
		}
		c.at++
		if c.s.tags[i] == c.tag {
			return v
		}
	}
}

// each calls f for every value; one that was put in under several hashes is
// visited as often.
func (t *table[T]) each(f func(*T)) {
	for i := range t.shards {
		s := t.shards[i].Load()
		if s == nil {
			continue
		}
		for _, v := range s.vals {
			if v != nil {
				f(v)
			}
		}
	}
}

// edit collects changes to a table: every shard is copied once however many
// changes it gets, and published by commit.
type edit[T any] struct {
	t     *table[T]
	dirty map[uint32]*shard[T]
}

func (e *edit[T]) shard(h uint64) *shard[T] {
	i := uint32(h >> (64 - shardBits))
	if s := e.dirty[i]; s != nil {
		return s
	}
	s := e.t.shards[i].Load().clone()
	if e.dirty == nil {
		e.dirty = make(map[uint32]*shard[T], 1)
	}
	e.dirty[i] = s
	return s
}

// find is table.find including the changes so far.
func (e *edit[T]) find(h uint64) cursor[T] {
	if s := e.dirty[uint32(h>>(64-shardBits))]; s != nil {
		return cursor[T]{s: s, tag: uint32(h), at: uint32(h)}
	}
	return e.t.find(h)
}

func (e *edit[T]) insert(h uint64, v *T) { e.shard(h).insert(uint32(h), v) }
func (e *edit[T]) remove(h uint64, v *T) { e.shard(h).remove(uint32(h), v) }

func (e *edit[T]) commit() {
	for i, s := range e.dirty {
		if s.n == 0 {
			s = nil
		}
		e.t.shards[i].Store(s)
	}
	e.dirty = nil
}

// clone returns a copy to change, smaller if much of it is empty.
func (s *shard[T]) clone() *shard[T] {
	if s == nil {
		return newShard[T](minSlots)
	}
	if len(s.vals) > minSlots && s.n*8 < len(s.vals) {
		return s.resized(len(s.vals) / 2)
	}
	return &shard[T]{tags: slices.Clone(s.tags), vals: slices.Clone(s.vals), n: s.n}
}

func newShard[T any](slots int) *shard[T] {
	return &shard[T]{tags: make([]uint32, slots), vals: make([]*T, slots)}
}

func (s *shard[T]) resized(slots int) *shard[T] {
	out := newShard[T](slots)
	for i, v := range s.vals {
		if v != nil {
			out.put(s.tags[i], v)
		}
	}
	return out
}

// insert adds v, keeping a quarter of the slots empty.
func (s *shard[T]) insert(tag uint32, v *T) {
	if (s.n+1)*4 > len(s.vals)*3 {
		*s = *s.resized(len(s.vals) * 2)
	}
	s.put(tag, v)
}

func (s *shard[T]) put(tag uint32, v *T) {
	mask := uint32(len(s.vals) - 1)
	i := tag & mask
	for s.vals[i] != nil {
		i = (i + 1) & mask
	}
	s.tags[i], s.vals[i] = tag, v
	s.n++
}

// remove takes v out once, if it is there, and closes the gap: a value moves back
// into it unless that would put it before its home slot.
func (s *shard[T]) remove(tag uint32, v *T) {
	mask := uint32(len(s.vals) - 1)
	gap := tag & mask
	for s.vals[gap] != v || s.tags[gap] != tag {
		if s.vals[gap] == nil {
			return
		}
		gap = (gap + 1) & mask
	}
	for i := (gap + 1) & mask; s.vals[i] != nil; i = (i + 1) & mask {
		if home := s.tags[i] & mask; (i-home)&mask >= (i-gap)&mask {
			s.tags[gap], s.vals[gap] = s.tags[i], s.vals[i]
			gap = i
		}
	}
	s.tags[gap], s.vals[gap] = 0, nil
	s.n--
}
