package handover

import (
	"encoding/binary"
	"hash/crc32"
	"slices"
	"testing"
	"time"
)

// FuzzDecodeSection: no input crashes, and what is read can be written again.
func FuzzDecodeSection(f *testing.F) {
	f.Add(encode(f, Header{Saved: time.Unix(1, 2)}, sample(3)))
	f.Add(encode(f, Header{}, nil))
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) > headerSize+4 { // else no change passes the checksum
			body := p[:len(p)-4]
			p = binary.BigEndian.AppendUint32(slices.Clone(body), crc32.Checksum(body, castagnoli))
		}
		var records []Record
		size := 0
		h, err := Decode(p, func(r Record) error {
			records = append(records, r)
			if size += len(r.Body); size > 1<<20 {
				return errDamaged
			}
			return nil
		})
		if err != nil {
			return
		}
		n := 0
		again, err := Decode(encode(t, h, records), func(r Record) error {
			if r.Name != records[n].Name || r.Version != records[n].Version || string(r.Body) != string(records[n].Body) {
				t.Errorf("record %d: %+v, was %+v", n, r, records[n])
			}
			n++
			return nil
		})
		if err != nil || n != len(records) || !again.Saved.Equal(h.Saved) {
			t.Errorf("%d of %d records, %v", n, len(records), err)
		}
	})
}

// FuzzDecodeMessage: no packet crashes the store.
func FuzzDecodeMessage(f *testing.F) {
	f.Add([]byte(`{"op":"put","v":1,"id":1,"pod":"u","ns":"net:[1]","names":["tcp/15001"]}`), 1)
	f.Add([]byte(`{"op":"report","v":1,"status":{"state":"serving","open":3}}`), 0)
	f.Add([]byte(`{"op":"save","v":1,"section":"addresses"}`), 1)
	f.Fuzz(func(t *testing.T, p []byte, fds int) {
		m, err := decode(p, fds)
		if err != nil {
			return
		}
		switch {
		case len(m.Names) > maxSockets, m.Op == opReport && m.Status == nil, m.Op == opSave && fds != 1,
			m.Op != opSave && m.Op != opAnswer && fds != len(m.Names):
			t.Errorf("accepted %+v with %d descriptors", m, fds)
		}
	})
}
