package xds

import (
	"fmt"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
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
