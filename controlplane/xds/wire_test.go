package xds

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// read returns a response as a client reads it.
func read(r *response) *discovery.DeltaDiscoveryResponse {
	b, err := Codec().Marshal(r)
	if err != nil {
		panic(err)
	}
	var m discovery.DeltaDiscoveryResponse
	if err := proto.Unmarshal(b.Materialize(), &m); err != nil {
		panic(err)
	}
	return &m
}

// What is put together from parts reads as the message that it stands for.
func TestResponseOnTheWire(t *testing.T) {
	t.Parallel()
	want := &discovery.DeltaDiscoveryResponse{SystemVersionInfo: "7", TypeUrl: kind, Nonce: "3", RemovedResources: []string{"gone"}}
	r := &response{rest: proto.CloneOf(want)}
	for i := range 300 {
		content := wrapperspb.String(fmt.Sprint("content ", i))
		res := NewResource(fmt.Sprint("name-", i), content, []string{"a", fmt.Sprint("alias-", i)}, "")
		r.resources = append(r.resources, res.wire)
		body, err := anypb.New(content)
		if err != nil {
			t.Fatal(err)
		}
		one := &discovery.Resource{Name: res.Name.Name, Version: res.Version, Aliases: res.Aliases, Resource: body}
		if got, err := res.Decode(); err != nil || !proto.Equal(got, one) {
			t.Fatalf("decoded %v, %v; want %v", got, err, one)
		}
		want.Resources = append(want.Resources, one)
	}
	if got := read(r); !proto.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	b, err := Codec().Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got discovery.DeltaDiscoveryResponse
	if err := Codec().Unmarshal(b, &got); err != nil || !proto.Equal(&got, want) {
		t.Errorf("other messages: got %v, %v; want %v", &got, err, want)
	}
}

// Responses to any number of clients share the resources, and so their memory.
func TestResponsesShare(t *testing.T) {
	t.Parallel()
	c := NewCache()
	for i := range 10 {
		pod(c, fmt.Sprint("pod-", i), "content")
	}
	var first []byte
	for i := range 3 {
		s := newStream(Client{}, []string{kind})
		s.request(c, &discovery.DeltaDiscoveryRequest{TypeUrl: kind}, s.client.Since)
		sent := s.collect(c)
		if len(sent) != 1 || len(sent[0].resources) != 10 {
			t.Fatalf("client %d is sent %v", i, sent)
		}
		b, err := Codec().Marshal(sent[0])
		if err != nil {
			t.Fatal(err)
		}
		resource := b[1].ReadOnlyData()
		if first == nil {
			first = resource
		}
		if &resource[0] != &first[0] {
			t.Error("a response has a copy of its own")
		}
	}
}

// A large request is decoded when few others are; a small one waits for nobody.
func TestLargeRequestsWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := codec{Codec().(codec).CodecV2, make(chan struct{}, 1)}
		decode := func(bytes int) <-chan error {
			done := make(chan error, 1)
			b, err := proto.Marshal(wrapperspb.String(strings.Repeat("x", bytes)))
			if err != nil {
				t.Fatal(err)
			}
			go func() { done <- c.Unmarshal(mem.BufferSlice{mem.SliceBuffer(b)}, &wrapperspb.StringValue{}) }()
			synctest.Wait()
			return done
		}
		c.large <- struct{}{} // somebody else's is being decoded
		small, large := decode(10), decode(largeRequest)
		if len(small) != 1 || len(large) != 0 {
			t.Errorf("decoded: small %v, large %v", len(small) == 1, len(large) == 1)
		}
		<-c.large
		if err := errors.Join(<-small, <-large); err != nil {
			t.Error(err)
		}
	})
}

// BenchmarkFirstPush measures what it takes to have all of a large mesh ready to be
// written to one client.
func BenchmarkFirstPush(b *testing.B) {
	c := NewCache()
	for i := range 11_000 {
		pod(c, fmt.Sprint("Kubernetes//Pod/namespace/pod-", i), "content")
	}
	b.ReportAllocs()
	for b.Loop() {
		s := newStream(Client{}, []string{kind})
		s.request(c, &discovery.DeltaDiscoveryRequest{TypeUrl: kind}, s.client.Since)
		for _, r := range s.collect(c) {
			if _, err := Codec().Marshal(r); err != nil {
				b.Fatal(err)
			}
		}
	}
}
