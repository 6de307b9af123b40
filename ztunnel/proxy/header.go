package proxy

import (
	"encoding/binary"
	"net/netip"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// tlvIdentity is the PROXY protocol TLV in which a client's SPIFFE URI is told.
const tlvIdentity = 0xD0

// proxyHeader returns a PROXY protocol version 2 header (command PROXY, TCP over
// IPv4 or IPv6) with the client's identity. Addresses of different families are
// both written as IPv6.
//
//	signature(12) 0x21 family length(2) src dst srcport dstport | 0xD0 length(2) uri
func proxyHeader(src, dst netip.AddrPort, id mesh.Identity) []byte {
	h := append(make([]byte, 0, 128), "\r\n\r\n\x00\r\nQUIT\n\x21"...)
	v4 := src.Addr().Is4() && dst.Addr().Is4()
	if v4 {
		h = append(h, 0x11, 0, 0)
	} else {
		h = append(h, 0x21, 0, 0)
	}
	body := len(h)
	for _, a := range []netip.Addr{src.Addr(), dst.Addr()} {
		if v4 {
			h = append(h, a.AsSlice()...)
			continue
		}
		b := a.As16()
		h = append(h, b[:]...)
	}
	h = binary.BigEndian.AppendUint16(h, src.Port())
	h = binary.BigEndian.AppendUint16(h, dst.Port())
	if uri := id.String(); uri != "" {
		h = append(h, tlvIdentity)
		h = binary.BigEndian.AppendUint16(h, uint16(len(uri)))
		h = append(h, uri...)
	}
	binary.BigEndian.PutUint16(h[body-2:], uint16(len(h)-body))
	return h
}
