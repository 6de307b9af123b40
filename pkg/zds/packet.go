package zds

import (
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netns"
	wire "github.com/culvert-mesh/culvert/pkg/wire/zds"
)

// maxDescriptors is how many descriptors a packet can bring before the kernel
// drops the rest; one is the most that is ever right.
const maxDescriptors = 8

// errMalformed is a packet that cannot be understood: the two ends no longer
// agree, and the connection is dropped.
var errMalformed = errors.New("malformed packet")

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
		return message{}, fmt.Errorf("%w: %w", errMalformed, err)
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
		return message{}, fmt.Errorf("%w: no payload", errMalformed)
	}
	want := 0
	if m.kind == kindAdd {
		want = 1
	}
	if len(fds) != want {
		return message{}, fmt.Errorf("%w: %s with %d file descriptors, want %d", errMalformed, m.kind, len(fds), want)
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
		return "", fmt.Errorf("%w: %w", errMalformed, err)
	}
	if res.GetAck() == nil {
		return "", fmt.Errorf("%w: no payload", errMalformed)
	}
	return res.GetAck().GetError(), nil
}

// writePacket sends one message, with the descriptor of ns when it is not nil.
func writePacket(c *net.UnixConn, m proto.Message, ns *netns.NS) error {
	p, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	if len(p) > wire.MaxPacket {
		return fmt.Errorf("packet of %d bytes, the limit is %d", len(p), wire.MaxPacket)
	}
	var oob []byte
	if ns != nil {
		oob = unix.UnixRights(ns.FD())
	}
	_, _, err = c.WriteMsgUnix(p, oob, nil)
	return err
}

// readPacket receives one packet into p and the descriptors that came with it,
// which the caller owns. A packet that the kernel had to cut is malformed.
func readPacket(c *net.UnixConn, p []byte) (n int, fds []int, err error) {
	oob := make([]byte, unix.CmsgSpace(maxDescriptors*4))
	n, oobn, flags, _, err := c.ReadMsgUnix(p, oob)
	if err != nil {
		return 0, nil, err
	}
	fds, err = descriptors(oob[:oobn])
	switch {
	case err != nil:
	case flags&unix.MSG_CTRUNC != 0:
		err = fmt.Errorf("%w: more than %d file descriptors", errMalformed, maxDescriptors)
	case flags&unix.MSG_TRUNC != 0 || n > wire.MaxPacket:
		err = fmt.Errorf("%w: longer than %d bytes", errMalformed, wire.MaxPacket)
	}
	if err != nil {
		closeAll(fds)
		return 0, nil, err
	}
	return n, fds, nil
}

func descriptors(oob []byte) (fds []int, err error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("%w: control message: %w", errMalformed, err)
	}
	for _, m := range msgs {
		got, err := unix.ParseUnixRights(&m)
		if err != nil {
			closeAll(fds)
			return nil, fmt.Errorf("%w: control message: %w", errMalformed, err)
		}
		fds = append(fds, got...)
	}
	return fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
