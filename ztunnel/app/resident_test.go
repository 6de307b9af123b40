package app

import (
	"os"
	"slices"
	"testing"
)

func TestUnwritten(t *testing.T) {
	t.Parallel()
	const smaps = `00400000-00dfe000 r-xp 00000000 fe:00 17                           /bin/ztunnel
Rss:                9592 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
00dfe000-00e00000 r-xp 009fe000 fe:00 17                           /bin/ztunnel
Anonymous:             8 kB
00e00000-00f00000 r-xp 00a00000 fe:00 17                           /bin/ztunnel
Anonymous:             0 kB
01000000-01100000 rw-p 00b00000 fe:00 17                           /bin/ztunnel
Anonymous:             0 kB
01200000-01300000 r--p 00b00000 fe:00 17                           /bin/ztunnel
Anonymous:             0 kB
01400000-01500000 r-xp 00000000 fe:00 18                           /lib/libc.so
Anonymous:             0 kB
zz-01 r-xp 00000000 fe:00 17                           /bin/ztunnel
Anonymous:             0 kB
7f0000000000-7f0000001000 rw-p 00000000 00:00 0
Anonymous:             4 kB
`
	want := []mapping{{0x400000, 0xdfe000}, {0xe00000, 0xf00000}}
	if got := unwritten([]byte(smaps), "/bin/ztunnel"); !slices.Equal(got, want) {
		t.Errorf("%x, want %x", got, want)
	}
}

// What was given back is there when it is needed. Not parallel: it asks how much is
// mapped.
func TestUnmapProgram(t *testing.T) {
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	if len(unwritten(smaps, self)) == 0 {
		t.Fatalf("no mapping of %s in\n%s", self, smaps)
	}
	for range 3 {
		if err := unmapProgram(); err != nil {
			t.Fatal(err)
		}
	}
}
