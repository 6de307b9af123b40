package xds

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"sync"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/encoding"
	protocodec "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
)

// resourcesField is the number of DeltaDiscoveryResponse.resources.
const resourcesField = 2

// NewResource returns a resource with m as its content. The version is a hash of
// content and aliases.
func NewResource(name string, m proto.Message, aliases []string, scope string) Resource {
	url := typeURL(m.ProtoReflect().Descriptor().FullName())
	body := must(proto.MarshalOptions{Deterministic: true}.Marshal(m))
	h := sha256.New()
	h.Write(body)
	for _, a := range aliases {
		h.Write([]byte{0})
		h.Write([]byte(a))
	}
	r := Resource{
		Name:    Name{url, name},
		Version: hex.EncodeToString(h.Sum(nil)[:8]),
		Aliases: aliases,
		Scope:   scope,
		size:    len(body),
	}
	r.wire = mem.SliceBuffer(encode(&discovery.Resource{Name: name, Version: r.Version, Aliases: aliases, Resource: &anypb.Any{TypeUrl: url, Value: body}}))
	return r
}

var typeURLs sync.Map // of protoreflect.FullName to its URL: one string for all resources

func typeURL(name protoreflect.FullName) string {
	if url, ok := typeURLs.Load(name); ok {
		return url.(string)
	}
	url, _ := typeURLs.LoadOrStore(name, "type.googleapis.com/"+string(name))
	return url.(string)
}

// encode returns r as it stands in a response, tag and length included.
func encode(r *discovery.Resource) []byte {
	size := proto.Size(r)
	out := make([]byte, 0, protowire.SizeTag(resourcesField)+protowire.SizeBytes(size))
	out = protowire.AppendTag(out, resourcesField, protowire.BytesType)
	out = protowire.AppendVarint(out, uint64(size))
	return must(proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(out, r))
}

// must returns the encoding of a message that was built here.
func must(b []byte, err error) []byte {
	if err != nil {
		panic("xds: resource does not encode: " + err.Error()) // only invalid UTF-8, which decoding refuses
	}
	return b
}

// Decode returns the resource as clients read it.
func (r *Resource) Decode() (*discovery.Resource, error) {
	var m discovery.DeltaDiscoveryResponse
	if err := proto.Unmarshal(r.wire.ReadOnlyData(), &m); err != nil {
		return nil, fmt.Errorf("decode resource %s: %w", r.Name.Name, err)
	}
	return m.Resources[0], nil
}

// response is a DeltaDiscoveryResponse as it is written: what this client alone is
// told, then resources as they were encoded once for all clients.
type response struct {
	rest      *discovery.DeltaDiscoveryResponse // without resources
	resources []mem.Buffer
	size      int // bytes of the resources' content
}

// Requests that are as large as when a client comes back and tells all that it holds
// are decoded a few at a time: each takes several times its size while it lives.
const (
	largeRequest = 64 << 10
	largeAtATime = 2
)

// Codec returns the encoding of a gRPC server that a Server is registered with:
// protocol buffers, but for the Server's responses, of which each resource was
// encoded before and is shared by all streams that send it. However many clients
// are sent everything at once, and however slowly they read, it is in memory once.
func Codec() encoding.CodecV2 {
	return codec{encoding.GetCodecV2(protocodec.Name), largeRequests}
}

var largeRequests = make(chan struct{}, largeAtATime) // of all servers

type codec struct {
	encoding.CodecV2
	large chan struct{} // holds a token for each large message that is being decoded
}

// Unmarshal implements encoding.CodecV2.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	if data.Len() >= largeRequest {
		c.large <- struct{}{}
		defer func() { <-c.large }()
	}
	return c.CodecV2.Unmarshal(data, v)
}

// Marshal implements encoding.CodecV2.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	r, ok := v.(*response)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	rest, err := proto.Marshal(r.rest)
	if err != nil {
		return nil, fmt.Errorf("encode response: %w", err)
	}
	out := make(mem.BufferSlice, 0, 1+len(r.resources))
	return append(append(out, mem.SliceBuffer(rest)), r.resources...), nil
}
