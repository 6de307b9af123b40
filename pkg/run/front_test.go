package run

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestPartsOutliveTheFrontsDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		var order []string
		var g Group
		g.Add("part", func(ctx context.Context) error {
			<-ctx.Done()
			order = append(order, "part ends")
			return nil
		})
		time.AfterFunc(time.Second, cancel)
		err := g.RunFront(ctx, "front", func(ctx, serving context.Context) error {
			<-serving.Done()
			time.Sleep(time.Minute) // draining
			if ctx.Err() != nil {
				t.Error("told to stop, and not given the time to drain")
			}
			order = append(order, "drained")
			return nil
		})
		if want := []string{"drained", "part ends"}; err != nil || !slices.Equal(order, want) {
			t.Errorf("%v, %v; want %v", err, order, want)
		}
	})
}

func TestFailedPartEndsTheFront(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group
		g.Add("part", func(context.Context) error {
			time.Sleep(time.Second)
			return errBroken
		})
		err := g.RunFront(context.Background(), "front", func(ctx, serving context.Context) error {
			<-serving.Done()
			if !errors.Is(context.Cause(serving), errBroken) || ctx.Err() == nil {
				t.Errorf("serving ends by %v, ctx by %v", context.Cause(serving), ctx.Err())
			}
			return nil
		})
		if !errors.Is(err, errBroken) {
			t.Error(err)
		}
	})
}

func TestFailedFrontEndsTheParts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group
		g.Add("part", untilDone)
		err := g.RunFront(context.Background(), "front", func(context.Context, context.Context) error { return errBroken })
		if err == nil || err.Error() != "front: broken" {
			t.Error(err)
		}
	})
}
