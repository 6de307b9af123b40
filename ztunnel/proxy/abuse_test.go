package proxy

import (
	"testing"
	"time"
)

// TestAbuseLog holds that a flood of abuse becomes a line a second, which says how
// many it stands for.
func TestAbuseLog(t *testing.T) {
	var a abuse
	now := time.Unix(1000, 0)
	if yes, silent := a.worthALine(now); !yes || silent != 0 {
		t.Errorf("the first: %v, %d", yes, silent)
	}
	for range 9 {
		if yes, _ := a.worthALine(now.Add(abuseLogEvery / 2)); yes {
			t.Fatal("a second line at once")
		}
	}
	if yes, silent := a.worthALine(now.Add(abuseLogEvery)); !yes || silent != 9 {
		t.Errorf("a second later: %v, %d", yes, silent)
	}
	if first := a.handshakes(); first == nil || a.handshakes() != first {
		t.Error("the node has one gate")
	}
}
