package tlsconn

import (
	"context"
	"testing"

	"github.com/culvert-mesh/culvert/pkg/hbone/hbonetest"
)

// A connection that waits holds no large buffer, however much has passed
// through it; with the beginning of a record it holds a small one.
func TestIdleHoldsNoBuffer(t *testing.T) {
	t.Parallel()
	ca := hbonetest.NewCA(t)
	id := hbonetest.Identity("x")
	a, b := hbonetest.TCPPair(t)
	made := make(chan *Conn, 1)
	go func() {
		s, err := Server(context.Background(), b, ca.Server(t, id))
		if err != nil {
			t.Error(err)
		}
		made <- s
	}()
	client, err := Client(context.Background(), a, ca.Client(t, id, id))
	if err != nil {
		t.Fatal(err)
	}
	server := <-made
	read := make(chan struct{})
	go func() {
		defer close(read)
		buf := make([]byte, 256<<10)
		for total := 0; total < 3<<20; {
			n, err := server.ReadBatch(buf)
			if err != nil {
				t.Error(err)
				return
			}
			total += n
		}
		_ = server.Wait() // returns when the connection is closed
	}()
	if _, err := client.Write(make([]byte, 3<<20)); err != nil {
		t.Fatal(err)
	}
	if client.t.out != nil {
		t.Error("the writer keeps its batch")
	}
	hbonetest.Until(t, "the reader to wait", func() bool { return hbonetest.Goroutines("tlsconn.(*Conn).Wait") > 0 })
	_ = a.Close()
	<-read
	if server.t.big != nil || server.t.small != nil {
		t.Error("the reader keeps a buffer")
	}
}
