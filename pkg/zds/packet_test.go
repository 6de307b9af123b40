package zds

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/packet"
	wire "github.com/culvert-mesh/culvert/pkg/wire/zds"
)

func TestDecode(t *testing.T) {
	t.Parallel()
	info := mesh.PodInfo{Name: "n", Namespace: "ns", ServiceAccount: "sa"}
	for _, c := range []struct {
		name string
		hex  string // written by hand from the protocol's field numbers
		fds  []int
		want message
		err  string
	}{
		{"add", "0a 11 0a 02 7531 12 0b 0a 01 6e 12 02 6e73 1a 02 7361", []int{9}, message{kind: kindAdd, uid: "u1", info: info, fd: 9}, ""},
		{"add without info", "0a 04 0a 02 7531", []int{9}, message{kind: kindAdd, uid: "u1", noInfo: true, fd: 9}, ""},
		{"delete", "12 04 12 02 7531", nil, message{kind: kindDelete, uid: "u1", fd: -1}, ""},
		{"snapshot sent", "1a 00", nil, message{kind: kindSnapshotSent, fd: -1}, ""},
		{"keep", "2a 04 0a 02 7531", nil, message{kind: kindKeep, uid: "u1", fd: -1}, ""},
		{"nothing", "", nil, message{}, "no payload"},
		{"field 4", "22 00", nil, message{}, "no payload"},
		{"add without descriptor", "0a 04 0a 02 7531", nil, message{}, "add with 0 file descriptors, want 1"},
		{"add with two", "0a 04 0a 02 7531", []int{8, 9}, message{}, "add with 2 file descriptors, want 1"},
		{"delete with one", "12 04 12 02 7531", []int{8}, message{}, "delete with 1 file descriptors, want 0"},
		{"cut", "0a 04 0a", nil, message{}, "malformed"},
		{"garbage", "ffffffff", nil, message{}, "malformed"},
	} {
		raw, err := hex.DecodeString(strings.ReplaceAll(c.hex, " ", ""))
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		got, err := decode(raw, c.fds)
		if c.err != "" {
			if !errors.Is(err, packet.ErrMalformed) || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: error %v, want %q", c.name, err, c.err)
			}
		} else if err != nil || got != c.want {
			t.Errorf("%s: %+v, %v, want %+v", c.name, got, err, c.want)
		}
	}
}

func TestEncodeRoundTrip(t *testing.T) {
	t.Parallel()
	w := Workload{UID: "u1", Info: mesh.PodInfo{Name: "n", Namespace: "ns", ServiceAccount: "sa"}}
	for _, c := range []struct {
		m    proto.Message
		fds  []int
		want message
	}{
		{encodeAdd(w), []int{3}, message{kind: kindAdd, uid: "u1", info: w.Info, fd: 3}},
		{encodeKeep("u1"), nil, message{kind: kindKeep, uid: "u1", fd: -1}},
		{encodeDelete("u1"), nil, message{kind: kindDelete, uid: "u1", fd: -1}},
		{encodeSnapshotSent(), nil, message{kind: kindSnapshotSent, fd: -1}},
	} {
		p, err := proto.Marshal(c.m)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := decode(p, c.fds); err != nil || got != c.want {
			t.Errorf("%+v, %v, want %+v", got, err, c.want)
		}
	}
}

func TestAckFits(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"short", strings.Repeat("x", 5000), strings.Repeat("ü€", 3000)} {
		p, err := proto.Marshal(encodeAck(errors.New(text)))
		if err != nil || len(p) > wire.MaxPacket {
			t.Fatalf("%d bytes, %v", len(p), err)
		}
		got, err := decodeAck(p)
		if err != nil || got == "" || len(text) < 100 && got != text {
			t.Errorf("ack %q, %v", got, err)
		}
	}
	if _, err := decodeAck(nil); !errors.Is(err, packet.ErrMalformed) {
		t.Errorf("empty ack: %v", err)
	}
}

// FuzzDecode looks for input that decode accepts but that does not survive being
// encoded again, and for anything that panics.
func FuzzDecode(f *testing.F) {
	for _, m := range []proto.Message{encodeAdd(Workload{UID: "u"}), encodeKeep("u"), encodeDelete("u"), encodeSnapshotSent()} {
		p, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(p, 1)
		f.Add(p, 0)
	}
	f.Fuzz(func(t *testing.T, p []byte, n int) {
		fds := make([]int, max(0, n%4))
		m, err := decode(p, fds)
		if err != nil {
			if !errors.Is(err, packet.ErrMalformed) {
				t.Fatalf("unclear error %v", err)
			}
			return
		}
		again := map[kind]proto.Message{
			kindAdd: encodeAdd(Workload{UID: m.uid, Info: m.info}), kindKeep: encodeKeep(m.uid),
			kindDelete: encodeDelete(m.uid), kindSnapshotSent: encodeSnapshotSent(),
		}[m.kind]
		q, err := proto.Marshal(again)
		if err != nil {
			t.Fatal(err)
		}
		m.noInfo = false
		if got, err := decode(q, fds); err != nil || got != m {
			t.Fatalf("%x: %+v became %+v, %v", p, m, got, err)
		}
		decodeAck(bytes.Clone(p))
	})
}
