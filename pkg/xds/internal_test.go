package xds

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"testing"
	"testing/synctest"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

const testType = "type.googleapis.com/t"

func TestBackOff(t *testing.T) {
	t.Parallel()
	var b backOff
	broken := ending{kind: endError, err: errors.New("broken")}
	for i, want := range []time.Duration{20, 40, 80, 160, 320, 640, 1280, 2560, 4000, 4000} {
		want *= time.Millisecond
		if got := b.next(broken); got > want || got < want*4/5 {
			t.Errorf("wait %d = %v, want %v less a fifth at most", i, got, want)
		}
	}
	for _, calm := range []ending{{kind: endComplete}, {kind: endReconnect}, {kind: endError, lived: maxWait}} {
		if got := b.next(calm); got > 2*minWait {
			t.Errorf("wait after %+v = %v, want the shortest", calm, got)
		}
		b.next(broken)
	}
}

func TestEndKinds(t *testing.T) {
	t.Parallel()
	for want, err := range map[endKind]error{
		endComplete:  io.EOF,
		endReconnect: status.Error(codes.Unavailable, `closing transport due to: connection error: desc = "error reading from server: EOF", received prior goaway: code: NO_ERROR, debug data: "max_age"`),
		endError:     status.Error(codes.Unavailable, "connection reset by peer"),
	} {
		if got := kindOf(err); got != want {
			t.Errorf("kindOf(%v) = %s, want %s", err, got, want)
		}
	}
}

// TestPacing counts the attempts of a client whose server refuses for a simulated
// minute.
func TestPacing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		attempts := 0
		c, err := NewClient(Config{
			Address: "http://control:1", Log: slog.New(slog.DiscardHandler),
			Dial: func(context.Context, string) (net.Conn, error) {
				attempts++
				return nil, errors.New("refused")
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := c.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
		// 20 ms doubled to 4 s is 5 s in eight steps, then 4 s each; less a fifth.
		if attempts < 20 || attempts > 27 {
			t.Errorf("%d attempts in a minute, want about 23", attempts)
		}
	})
}

func TestNothingToWaitFor(t *testing.T) {
	t.Parallel()
	c, err := NewClient(Config{Address: "http://control:1", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-c.FirstSnapshot():
	default:
		t.Error("without wildcard types the first snapshot is still awaited")
	}
}

// FuzzResponse: whatever a server sends, what is held is what was accepted last,
// and the answer can be encoded.
func FuzzResponse(f *testing.F) {
	for _, r := range []*discovery.DeltaDiscoveryResponse{
		{TypeUrl: testType, Nonce: "1", Resources: []*discovery.Resource{
			{Name: "a", Version: "1", Resource: &anypb.Any{TypeUrl: testType, Value: []byte("x")}, Aliases: []string{"b"}},
			{Name: "c", Resource: &anypb.Any{TypeUrl: "other"}}, {Name: "d"},
		}},
		{TypeUrl: testType, RemovedResources: []string{"a", "", "a"}},
	} {
		b, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, true)
		f.Add(b, false)
	}
	f.Fuzz(func(t *testing.T, data []byte, wildcard bool) {
		var resp discovery.DeltaDiscoveryResponse
		if proto.Unmarshal(data, &resp) != nil {
			return
		}
		want := make(map[string]string)
		st := newTypeState(Subscription{TypeURL: testType, Wildcard: wildcard, Handle: model(want)})
		for range 2 {
			if _, err := proto.Marshal(answer(&resp, st.apply(&resp))); err != nil {
				t.Fatalf("answer: %v", err)
			}
			if !maps.Equal(st.versions, want) {
				t.Fatalf("holds %v, want %v", st.versions, want)
			}
		}
	})
}

// model accepts resources with a body, and records what should be held. A name
// that comes more than once and is rejected once does not count as accepted.
func model(held map[string]string) func([]Resource, []string) []Rejected {
	return func(added []Resource, removed []string) (rejected []Rejected) {
		for _, name := range removed {
			delete(held, name)
		}
		bad := make(map[string]bool)
		for _, r := range added {
			if len(r.Body.Value) == 0 {
				bad[r.Name] = true
				rejected = append(rejected, Rejected{r.Name, errors.New("no body")})
			}
		}
		for _, r := range added {
			if !bad[r.Name] {
				held[r.Name] = r.Version
			}
		}
		return rejected
	}
}
