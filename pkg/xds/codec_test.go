package xds

import (
	"fmt"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

func bigResponse(n int) *discovery.DeltaDiscoveryResponse {
	resp := &discovery.DeltaDiscoveryResponse{
		TypeUrl: "type", Nonce: "nonce-1", SystemVersionInfo: "v1", RemovedResources: []string{"a", "b"},
	}
	for i := range n {
		resp.Resources = append(resp.Resources, &discovery.Resource{
			Name: fmt.Sprint("r-", i), Version: "1", Aliases: []string{fmt.Sprint("alias-", i)},
			Resource: &anypb.Any{TypeUrl: "type", Value: []byte(fmt.Sprint("body ", i))},
		})
	}
	return resp
}

// What the codec decodes is what proto.Unmarshal does, also from pieces.
func TestCodec(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 1, 3 * breath} {
		want := bigResponse(n)
		b, err := proto.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		half := len(b) / 2
		got := new(discovery.DeltaDiscoveryResponse)
		if err := newCodec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(b[:half]), mem.SliceBuffer(b[half:])}, got); err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(got, want) {
			t.Errorf("%d resources: decoded %v", n, got)
		}
	}
}

// The codec accepts and refuses what proto.Unmarshal does, and makes the same of it.
func FuzzCodec(f *testing.F) {
	for _, n := range []int{0, 1, 3} {
		b, err := proto.Marshal(bigResponse(n))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[:len(b)/2])
	}
	f.Add([]byte{0x12, 0x05})             // a resource that is cut off
	f.Add([]byte{0x10, 0x05, 0x12, 0x00}) // a resource that is a number, and an empty one
	f.Fuzz(func(t *testing.T, b []byte) {
		var got, want discovery.DeltaDiscoveryResponse
		err, wantErr := decodeResponse(b, &got), proto.Unmarshal(b, &want)
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("error %v, proto.Unmarshal's %v", err, wantErr)
		}
		if err == nil && !proto.Equal(&got, &want) {
			t.Errorf("decoded %v, want %v", &got, &want)
		}
	})
}
