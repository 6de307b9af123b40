package runtest

import (
	"net"
	"strings"
	"testing"
)

func TestLeftoversAreFound(t *testing.T) {
	before := sockets()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	started, stop := make(chan struct{}), make(chan struct{})
	go lingering(started, stop)
	<-started
	found := strings.Join(goroutines(), "\n")
	if !strings.Contains(found, "lingering") || sockets() != before+1 {
		t.Errorf("%d sockets, goroutines:\n%s", sockets()-before, found)
	}
	close(stop)
	l.Close()
	if left := leftovers(before); left != "" {
		t.Error(left)
	}
}

func lingering(started chan<- struct{}, stop <-chan struct{}) {
	close(started)
	<-stop
}
