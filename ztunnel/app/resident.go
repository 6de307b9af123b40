package app

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Most of a program's code is for starting, or for what never happens, and the
// kernel maps everything around what is touched. Once we have started we give these
// pages back: what is needed again is mapped again, a few dozen short faults for as
// long as the page cache has it. Tables are left alone: nearly all of them would come
// back with the first connections.

// mapping is a part of our address space that the program file backs.
type mapping struct{ start, end uintptr }

// unmapProgram gives back the pages of the program's code that are resident. They
// can be run as before.
func unmapProgram() error {
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range unwritten(smaps, self) {
		if _, _, e := unix.Syscall(unix.SYS_MADVISE, m.start, m.end-m.start, unix.MADV_DONTNEED); e != 0 {
			errs = append(errs, fmt.Errorf("madvise %x-%x: %w", m.start, m.end, e))
		}
	}
	return errors.Join(errs...)
}

// unwritten returns a file's mappings with code, of /proc/self/smaps
// (proc_pid_smaps(5)), that cannot be written and never were: a page of theirs that is dropped comes back
// from the file as it was. One that has pages of its own, relocations for example,
// is left out.
func unwritten(smaps []byte, file string) (out []mapping) {
	var here *mapping
	lines := bufio.NewScanner(bytes.NewReader(smaps))
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		switch {
		case len(f) >= 5 && !strings.HasSuffix(f[0], ":"): // 00400000-00dfe000 r-xp 00000000 fe:00 17 /bin/ztunnel
			here = nil
			if len(f) == 6 && f[5] == file && f[1] == "r-xp" {
				here = parseRange(f[0])
			}
		case here != nil && len(f) == 3 && f[0] == "Anonymous:":
			if f[1] == "0" {
				out = append(out, *here)
			}
			here = nil
		}
	}
	return out
}

func parseRange(text string) *mapping {
	from, to, _ := strings.Cut(text, "-")
	start, err1 := strconv.ParseUint(from, 16, 64)
	end, err2 := strconv.ParseUint(to, 16, 64)
	if err1 != nil || err2 != nil || start >= end {
		return nil
	}
	return &mapping{uintptr(start), uintptr(end)}
}
