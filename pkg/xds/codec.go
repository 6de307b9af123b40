package xds

import (
	"fmt"
	"runtime"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // the codec that ours wraps
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// breath is how many resources are handled without letting others run, less than a
// tenth of a millisecond's worth.
const breath = 32

// resourcesField is the number of a response's resources in its message.
const resourcesField = 2

// codec is gRPC's own but for responses: it decodes them a few resources at a
// time, so that one of 10,000 does not keep a thread from everything else.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2("proto")} }

// Unmarshal implements encoding.CodecV2.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	resp, ok := v.(*discovery.DeltaDiscoveryResponse)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	buf := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buf.Free()
	return decodeResponse(buf.ReadOnlyData(), resp)
}

// decodeResponse is proto.Unmarshal, letting others run.
func decodeResponse(b []byte, resp *discovery.DeltaDiscoveryResponse) error {
	var resources []*discovery.Resource
	var others []byte // fields
	for len(b) > 0 {
		number, kind, body, size := nextField(b)
		if size < 0 {
			return fmt.Errorf("decode response: %w", protowire.ParseError(size))
		}
		if number != resourcesField || kind != protowire.BytesType {
			others = append(others, b[:size]...)
		} else {
			r := new(discovery.Resource)
			if err := proto.Unmarshal(body, r); err != nil {
				return fmt.Errorf("decode response: resource %d: %w", len(resources), err)
			}
			if resources = append(resources, r); len(resources)%breath == 0 {
				runtime.Gosched()
			}
		}
		b = b[size:]
	}
	if err := proto.Unmarshal(others, resp); err != nil {
		return fmt.Errorf("decode response: %w", err)
	}
	resp.Resources = resources
	return nil
}

// nextField returns the first field of b and its size, which is negative where b is
// malformed. body is that of a field with a length.
func nextField(b []byte) (number protowire.Number, kind protowire.Type, body []byte, size int) {
	number, kind, tag := protowire.ConsumeTag(b)
	if tag < 0 {
		return 0, 0, nil, tag
	}
	n := 0
	if kind == protowire.BytesType {
		body, n = protowire.ConsumeBytes(b[tag:])
	} else {
		n = protowire.ConsumeFieldValue(number, kind, b[tag:])
	}
	if n < 0 {
		return 0, 0, nil, n
	}
	return number, kind, body, tag + n
}
