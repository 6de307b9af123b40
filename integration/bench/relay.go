package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

// listening is what a relay prints before it accepts.
const listening = "listening\n"

// relayMain is one hop of the yardstick: it connects every accepted connection to
// a fixed address and lets the kernel splice both ways. No TLS, no policy, no
// multiplexing: what any two-hop proxy on this machine could reach at best. It ends
// with its standard input.
func relayMain(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("relay", flag.ContinueOnError)
	listen := f.String("listen", "", "address to listen on")
	to := f.String("to", "", "address to connect to")
	if err := f.Parse(args); err != nil {
		return err
	}
	if *listen == "" || *to == "" {
		return fmt.Errorf("relay: -listen and -to are required")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		defer cancel()
		io.Copy(io.Discard, os.Stdin)
	}()
	fmt.Print(listening)
	return serve(ctx, *listen, func(c *net.TCPConn) { relayConn(ctx, c, *to) })
}

func relayConn(ctx context.Context, in *net.TCPConn, to string) {
	defer in.Close()
	d := net.Dialer{Timeout: 10 * time.Second}
	c, err := d.DialContext(ctx, "tcp", to)
	if err != nil {
		return
	}
	out := c.(*net.TCPConn)
	defer out.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		splice(out, in)
	}()
	splice(in, out)
	<-done
}

// splice moves one direction to its end and passes the end on.
func splice(dst, src *net.TCPConn) {
	io.Copy(dst, src)
	dst.CloseWrite()
}
