package app

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/emptypb"

	reports "github.com/culvert-mesh/culvert/controlplane/status"
	authzpb "github.com/culvert-mesh/culvert/pkg/wire/authz"
	workloadpb "github.com/culvert-mesh/culvert/pkg/wire/workload"
)

// TestDrain: at the end clients are left alone for a third of the time, and then
// sent away a few at a time, each in order; who comes meanwhile is served.
func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const over, clients = 6 * time.Second, 40
		lis := bufconn.Listen(1 << 16)
		b := newBerths(lis, func(more ...grpc.ServerOption) *grpc.Server {
			return grpc.NewServer(append(more, grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error {
				if err := s.SendMsg(&emptypb.Empty{}); err != nil {
					return err
				}
				<-s.Context().Done()
				if err := context.Cause(s.Context()); !errors.Is(err, io.EOF) {
					t.Errorf("a stream's context ended by %v", err)
				}
				return nil
			}))...)
		})
		serving, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- b.run(t.Context(), serving, func() time.Duration { return over }) }()
		ends := make(chan time.Duration, clients+1)
		var begin time.Time
		dial := func() {
			conn, err := grpc.NewClient("passthrough:///replica", grpc.WithTransportCredentials(insecure.NewCredentials()),
				grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			s, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, "/test/Watch")
			if err != nil {
				t.Error(err)
				return
			}
			var m emptypb.Empty
			if err := s.RecvMsg(&m); err != nil {
				t.Errorf("not served: %v", err)
			}
			if err := s.RecvMsg(&m); err != io.EOF {
				t.Errorf("ended by %v", err)
			}
			ends <- time.Since(begin)
		}
		for range clients {
			go dial()
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		begin = time.Now()
		stop()
		time.Sleep(over / 2)
		go dial() // has not heard of it
		if err := <-done; err != nil {
			t.Error(err)
		}
		if took := time.Since(begin); took > over+lastCalls {
			t.Errorf("took %s", took)
		}
		synctest.Wait()
		var at []time.Duration
		for len(ends) > 0 {
			at = append(at, <-ends)
		}
		slices.Sort(at)
		if len(at) != clients+1 || at[0] < over/3 || at[len(at)-1]-at[0] < over/3 {
			t.Errorf("%d streams ended, from %s to %s", len(at), at[0], at[len(at)-1])
		}
		together := 1
		for i, n := 1, 1; i < len(at); i++ {
			if n++; at[i]-at[i-1] > goAwayTime {
				n = 1
			}
			together = max(together, n)
		}
		if together > clients/berthCount+1 {
			t.Errorf("%d were sent away together", together)
		}
	})
}

// TestReplicas: a client that is sent from one replica to another is sent again
// nothing that it has, and what changed meanwhile.
func TestReplicas(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a := newPlane(t, dir, func(c *Config) { c.Drain = time.Second })
	b := newPlane(t, dir)
	a.write("a.yaml", podYAML("a", "10.0.0.1"))
	a.write("b.yaml", podYAML("b", "10.0.0.2"))
	for _, p := range []*plane{a, b} {
		p.eventually("both pods", func(r reports.Report) bool { return r.Resources[workloadpb.TypeURL] == 2 })
	}
	const podA, podB = "Kubernetes//Pod/shop/a", "Kubernetes//Pod/shop/b"
	type held struct{ policies, workloads map[string]string }
	var clients []*client
	var holds []held
	for range 20 {
		c := a.connect(node1)
		c.subscribe(authzpb.TypeURL, nil)
		policies := versions(c.next(authzpb.TypeURL, []string{static}, nil))
		c.subscribe(workloadpb.TypeURL, nil)
		holds = append(holds, held{policies, versions(c.next(workloadpb.TypeURL, []string{podA, podB}, nil))})
		clients = append(clients, c)
	}
	stopped := make(chan struct{})
	go func() { defer close(stopped); a.stop() }()
	for i, c := range clients {
		if r, err := c.stream.Recv(); err != io.EOF {
			t.Fatalf("a stream ended by %v, %v", r, err)
		}
		c.close()
		next := b.connect(node1)
		next.subscribe(authzpb.TypeURL, holds[i].policies)
		next.next(authzpb.TypeURL, nil, nil)
		next.subscribe(workloadpb.TypeURL, holds[i].workloads)
		next.next(workloadpb.TypeURL, nil, nil)
		clients[i] = next
	}
	<-stopped
	b.write("b.yaml", podYAML("b", "10.0.0.3"))
	for _, c := range clients {
		c.next(workloadpb.TypeURL, []string{podB}, nil)
	}
	late := b.connect(node1)
	late.subscribe(workloadpb.TypeURL, holds[0].workloads)
	late.next(workloadpb.TypeURL, []string{podB}, nil)
}
