package h2

import (
	"context"
	"net"

	"github.com/culvert-mesh/culvert/pkg/hbone"
)

type Pool struct{ cfg PoolConfig }

func NewPool(cfg PoolConfig) *Pool              { return &Pool{cfg} }
func (p *Pool) Run(ctx context.Context) error   { <-ctx.Done(); return nil }
func (p *Pool) Drain(ctx context.Context) error { return nil }
func (p *Pool) Close() error                    { return nil }
func (p *Pool) Snapshot() []ConnInfo            { return nil }
func (p *Pool) Open(ctx context.Context, to hbone.Peer, req hbone.Request) (hbone.Stream, *hbone.Response, error) {
	return nil, nil, net.ErrClosed
}

type Server struct{ cfg ServerConfig }

func NewServer(cfg ServerConfig) *Server                           { return &Server{cfg} }
func (s *Server) Serve(ctx context.Context, ln net.Listener) error { <-ctx.Done(); return nil }
func (s *Server) Drain(ctx context.Context) error                  { return nil }
func (s *Server) Close() error                                     { return nil }
