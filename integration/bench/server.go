package main

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"io"
	"net"

	"golang.org/x/sys/unix"
)

// What a connection asks of the server is its first byte.
const (
	modeSink = 'S' // read to the end, then answer with the count, 8 bytes big endian
	modeEcho = 'E' // answer every request of requestSize bytes with responseSize bytes
	modeHang = 'H' // never read another byte
)

const (
	requestSize  = 128
	responseSize = 1024
	serverPort   = "9000"
)

func serverMain(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("server", flag.ContinueOnError)
	addr := f.String("listen", ":"+serverPort, "address to listen on")
	if err := f.Parse(args); err != nil {
		return err
	}
	return serve(ctx, *addr, serveConn)
}

// serve accepts until ctx ends and hands every connection to its own goroutine.
func serve(ctx context.Context, addr string, handle func(*net.TCPConn)) error {
	if err := moreConnections(); err != nil {
		return err
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		go handle(c.(*net.TCPConn))
	}
}

func serveConn(c *net.TCPConn) {
	defer c.Close()
	var mode [1]byte
	if _, err := io.ReadFull(c, mode[:]); err != nil {
		return
	}
	switch mode[0] {
	case modeSink:
		serveSink(c)
	case modeEcho:
		serveEcho(c)
	case modeHang:
		serveHang(c)
	}
}

// serveHang takes as little as it can until its peer has gone.
func serveHang(c *net.TCPConn) {
	c.SetReadBuffer(4 << 10)
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	raw.Read(func(fd uintptr) bool { // looks again whenever something has arrived
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		return err != nil || info.State != unix.BPF_TCP_ESTABLISHED
	})
}

func serveSink(c *net.TCPConn) {
	buf := make([]byte, 256<<10)
	var total uint64
	for {
		n, err := c.Read(buf)
		total += uint64(n)
		if err != nil {
			break
		}
	}
	var answer [8]byte
	binary.BigEndian.PutUint64(answer[:], total)
	c.Write(answer[:])
}

func serveEcho(c *net.TCPConn) {
	request := make([]byte, requestSize)
	response := make([]byte, responseSize)
	for {
		if _, err := io.ReadFull(c, request); err != nil {
			return
		}
		if _, err := c.Write(response); err != nil {
			return
		}
	}
}
