// Package zds is the wire form of the protocol between a node's agent and its
// ztunnel: one message per packet on a SOCK_SEQPACKET socket, no length prefix,
// at most MaxPacket bytes each way.
//
//	ztunnel ── ZdsHello ──────────────────────────► agent
//	        ◄─ WorkloadRequest{add + descriptor} ──
//	        ── WorkloadResponse{ack} ─────────────►
//
// The messages are generated from zds.proto; pkg/zds speaks the protocol.
package zds

// MaxPacket is the largest packet in bytes that either side accepts.
const MaxPacket = 1024
