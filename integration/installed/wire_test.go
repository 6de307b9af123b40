//go:build kube

package installed

import (
	"context"
	"errors"
	"testing"

	"github.com/culvert-mesh/culvert/cli/laptop/wiretap"
	"github.com/culvert-mesh/culvert/pkg/netns"
)

// wire runs do while everything on node 1's wire is read.
func wire(t *testing.T, do func()) *wiretap.Tap {
	t.Helper()
	ns, err := netns.Open(placeNamespace("node1"))
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	tap, err := wiretap.Open(ns, "eth0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- tap.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}()
	do()
	return tap
}
