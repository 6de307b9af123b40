package zds

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/culvert-mesh/culvert/pkg/wire/wiretest"
)

func TestGolden(t *testing.T) {
	t.Parallel()
	var all []proto.Message
	for path, m := range map[string]proto.Message{
		"hello.hex": &ZdsHello{Version: Version_V1},
		"request_add.hex": &WorkloadRequest{Payload: &WorkloadRequest_Add{Add: &AddWorkload{
			Uid:          "8d0c",
			WorkloadInfo: &WorkloadInfo{Name: "cart-1", Namespace: "shop", ServiceAccount: "cart"},
		}}},
		"request_del.hex":           &WorkloadRequest{Payload: &WorkloadRequest_Del{Del: &DelWorkload{Uid: "8d0c"}}},
		"request_snapshot_sent.hex": &WorkloadRequest{Payload: &WorkloadRequest_SnapshotSent{SnapshotSent: &SnapshotSent{}}},
		"request_keep.hex":          &WorkloadRequest{Payload: &WorkloadRequest_Keep{Keep: &KeepWorkload{Uid: "8d0c"}}},
		"response_ack.hex":          &WorkloadResponse{Payload: &WorkloadResponse_Ack{Ack: &Ack{}}},
		"response_error.hex":        &WorkloadResponse{Payload: &WorkloadResponse_Ack{Ack: &Ack{Error: "no netns"}}},
	} {
		wiretest.Golden(t, "testdata/"+path, m)
		all = append(all, m)
	}
	wiretest.Covers(t, File_pkg_wire_zds_zds_proto, all...)
}
