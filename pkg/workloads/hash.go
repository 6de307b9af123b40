package workloads

import (
	"encoding/binary"
	"hash/maphash"
	"math/bits"
	"net/netip"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// hasher hashes keys; its seed differs between stores.
type hasher struct {
	seed maphash.Seed
	salt uint64
}

func newHasher() hasher {
	seed := maphash.MakeSeed()
	return hasher{seed: seed, salt: maphash.String(seed, "workloads") | 1}
}

func (h *hasher) string(s string) uint64 { return maphash.String(h.seed, s) }

// pair hashes two strings so that moving bytes between them changes the hash.
func (h *hasher) pair(a, b string) uint64 {
	return mix(h.string(a)+h.salt, h.string(b)^h.salt)
}

func (h *hasher) service(n mesh.ServiceName) uint64 { return h.pair(n.Namespace, n.Hostname) }
func (h *hasher) policy(n mesh.PolicyName) uint64   { return h.pair(n.Namespace, n.Name) }

func (h *hasher) addr(network mesh.Network, a netip.Addr) uint64 {
	b := a.As16()
	lo := mix(binary.BigEndian.Uint64(b[:8])^h.salt, binary.BigEndian.Uint64(b[8:])+h.salt)
	return mix(lo^h.salt, h.string(string(network))|1)
}

func (h *hasher) prefix(network mesh.Network, p netip.Prefix) uint64 {
	return mix(h.addr(network, p.Addr())+h.salt, uint64(p.Bits())+h.salt)
}

// mix is the folded product of two words.
func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}
