package main

import (
	"fmt"
	"testing"
)

func TestUnwell(t *testing.T) {
	t.Parallel()
	got := fmt.Sprint(unwell(`culvert-system   ztunnel-x    1/1   Running             0   5m
default          job-a        0/1   Completed           0   5m
default          web          1/1   Running             0   5m
default          stuck        0/1   ContainerCreating   0   5m
No resources found
`))
	if want := "[[culvert-system ztunnel-x] [default stuck]]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
