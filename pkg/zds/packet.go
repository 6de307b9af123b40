package zds

import (
	"fmt"
	"net"

	"google.golang.org/protobuf/proto"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netns"
	"github.com/culvert-mesh/culvert/pkg/packet"
	wire "github.com/culvert-mesh/culvert/pkg/wire/zds"
)

// maxDescriptors is how many descriptors a packet can bring before the kernel
// drops the rest; one is the most that is ever right.
const maxDescriptors = 8

type kind uint8

const (
	kindAdd kind = iota + 1
	kindKeep
	kindDelete
	kindSnapshotSent
)

func (k kind) String() string {
	return [...]string{"none", "add", "keep", "delete", "snapshot sent"}[k]
}

// message is one decoded request. An Add without WorkloadInfo has noInfo set.
type message struct {
	kind   kind
	uid    mesh.PodUID
	info   mesh.PodInfo
	noInfo bool
	fd     int // the descriptor of an Add, else -1
}

// decode parses a request and checks that the descriptors that came with it are
// what its kind asks for. It does not close any.
func decode(p []byte, fds []int) (message, error) {
	var req wire.WorkloadRequest
	if err := proto.Unmarshal(p, &req); err != nil {
		return message{}, fmt.Errorf("%w: %w", packet.ErrMalformed, err)
	}
	m := message{fd: -1}
	switch r := req.Payload.(type) {
	case *wire.WorkloadRequest_Add:
		m.kind, m.uid = kindAdd, mesh.PodUID(r.Add.GetUid())
		info := r.Add.GetWorkloadInfo()
		m.noInfo = info == nil
		m.info = mesh.PodInfo{Name: info.GetName(), Namespace: info.GetNamespace(), ServiceAccount: info.GetServiceAccount()}
	case *wire.WorkloadRequest_Keep:
		m.kind, m.uid = kindKeep, mesh.PodUID(r.Keep.GetUid())
	case *wire.WorkloadRequest_Del:
		m.kind, m.uid = kindDelete, mesh.PodUID(r.Del.GetUid())
	case *wire.WorkloadRequest_SnapshotSent:
		m.kind = kindSnapshotSent
	default:
		return message{}, fmt.Errorf("%w: no payload", packet.ErrMalformed)
	}
	want := 0
	if m.kind == kindAdd {
		want = 1
	}
	if len(fds) != want {
		return message{}, fmt.Errorf("%w: %s with %d file descriptors, want %d", packet.ErrMalformed, m.kind, len(fds), want)
	}
	if want == 1 {
		m.fd = fds[0]
	}
	return m, nil
}

func encodeAdd(w Workload) *wire.WorkloadRequest {
	return &wire.WorkloadRequest{Payload: &wire.WorkloadRequest_Add{Add: &wire.AddWorkload{
		Uid: string(w.UID),
		WorkloadInfo: &wire.WorkloadInfo{
			Name: w.Info.Name, Namespace: w.Info.Namespace, ServiceAccount: w.Info.ServiceAccount,
		},
	}}}
}

func encodeKeep(uid mesh.PodUID) *wire.WorkloadRequest {
	return &wire.WorkloadRequest{Payload: &wire.WorkloadRequest_Keep{Keep: &wire.KeepWorkload{Uid: string(uid)}}}
}

func encodeDelete(uid mesh.PodUID) *wire.WorkloadRequest {
	return &wire.WorkloadRequest{Payload: &wire.WorkloadRequest_Del{Del: &wire.DelWorkload{Uid: string(uid)}}}
}

func encodeSnapshotSent() *wire.WorkloadRequest {
	return &wire.WorkloadRequest{Payload: &wire.WorkloadRequest_SnapshotSent{SnapshotSent: &wire.SnapshotSent{}}}
}

// encodeAck cuts an error text so that the packet stays within the limit.
func encodeAck(err error) *wire.WorkloadResponse {
	text := ""
	if err != nil {
		text = err.Error()
	}
	const most = wire.MaxPacket - 64
	if len(text) > most {
		text = string([]rune(text[:most-8])) + "…"
	}
	return &wire.WorkloadResponse{Payload: &wire.WorkloadResponse_Ack{Ack: &wire.Ack{Error: text}}}
}

// decodeAck returns the error text of an acknowledgement.
func decodeAck(p []byte) (string, error) {
	var res wire.WorkloadResponse
	if err := proto.Unmarshal(p, &res); err != nil {
		return "", fmt.Errorf("%w: %w", packet.ErrMalformed, err)
	}
	if res.GetAck() == nil {
		return "", fmt.Errorf("%w: no payload", packet.ErrMalformed)
	}
	return res.GetAck().GetError(), nil
}

// writePacket sends one message, with the descriptor of ns when it is not nil.
func writePacket(c *net.UnixConn, m proto.Message, ns *netns.NS) error {
	p, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	if ns == nil {
		return packet.Write(c, p, wire.MaxPacket)
	}
	return packet.Write(c, p, wire.MaxPacket, ns.FD())
}
