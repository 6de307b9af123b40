// Package clock moves the clock of one running program, for tests of what a mesh
// does whose machines do not agree on the time.
//
//	program ── time.Now ──▶ vDSO clock_gettime ── CLOCK_REALTIME ──▶ kernel's answer + shift
//	                                           └─ any other clock ─▶ kernel's answer
//
// Containers share the kernel's clock, and its time namespaces leave out the one that
// people mean. But every process has a page of its own with the kernel's code that
// reads clocks: that code is replaced, in this process alone, by a system call and an
// addition. Timers do not notice, as when a real clock is set. It works for programs
// on Linux and x86-64 that ask the time there, as those written in Go do; a program
// that is started again has the right time again.
package clock

import (
	"bufio"
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Supported reports whether Shift works on this machine.
const Supported = runtime.GOOS == "linux" && runtime.GOARCH == "amd64"

// Shift moves the clock of a process to d, in whole seconds, ahead of the right time;
// 0 puts it right. It may be called again. The process stands still for a moment.
func Shift(pid int, d time.Duration) error {
	if err := shift(pid, d); err != nil {
		return fmt.Errorf("move the clock of process %d by %v: %w", pid, d, err)
	}
	return nil
}

func shift(pid int, d time.Duration) error {
	if !Supported {
		return errors.New("only on Linux and x86-64")
	}
	mem, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer mem.Close()
	at, size, err := reader(pid, mem)
	if err != nil {
		return err
	}
	code := answer(d)
	if size < uint64(len(code)) {
		return fmt.Errorf("the kernel's code has %d bytes, %d are needed", size, len(code))
	}
	return stopped(pid, at, size, func() error {
		_, err := mem.WriteAt(code, int64(at))
		return err
	})
}

// answer is clock_gettime(clock in EDI, result in RSI) as machine code.
func answer(d time.Duration) []byte {
	code := []byte{
		0xb8, 0xe4, 0x00, 0x00, 0x00, // mov eax, 228: clock_gettime
		0x0f, 0x05, // syscall
		0x85, 0xff, // test edi, edi: CLOCK_REALTIME is 0
		0x75, 0x07, // jnz to the end
		0x48, 0x81, 0x06, 0, 0, 0, 0, // add qword [rsi], seconds
		0xc3, // ret
	}
	binary.LittleEndian.PutUint32(code[14:], uint32(int32(d/time.Second)))
	return code
}

// reader finds the code that reads clocks in a process.
func reader(pid int, mem *os.File) (at, size uint64, err error) {
	from, to, err := vdso(pid)
	if err != nil {
		return 0, 0, err
	}
	image := make([]byte, to-from)
	if _, err := mem.ReadAt(image, int64(from)); err != nil {
		return 0, 0, err
	}
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return 0, 0, err
	}
	symbols, err := f.DynamicSymbols()
	if err != nil {
		return 0, 0, err
	}
	for _, s := range symbols {
		if s.Name == "__vdso_clock_gettime" {
			return from + s.Value, s.Size, nil
		}
	}
	return 0, 0, errors.New("the vDSO has no clock_gettime")
}

// vdso is where a process has the kernel's code.
func vdso(pid int) (from, to uint64, err error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if !strings.HasSuffix(s.Text(), "[vdso]") {
			continue
		}
		_, err := fmt.Sscanf(s.Text(), "%x-%x", &from, &to)
		return from, to, err
	}
	return 0, 0, errors.New("it has no vDSO")
}

// stopped does something while the process stands still, and none of its threads is
// in the code from at on.
func stopped(pid int, at, size uint64, do func() error) error {
	const tries = 100
	for range tries {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			return err
		}
		free, err := outside(pid, at, size)
		if free && err == nil {
			err = do()
		}
		if cont := syscall.Kill(pid, syscall.SIGCONT); err == nil {
			err = cont
		}
		if free || err != nil {
			return err
		}
		time.Sleep(time.Millisecond) // so that it gets on
	}
	return errors.New("it always reads the clock")
}

// outside waits until every thread stands still, and reports whether none is in the
// code.
func outside(pid int, at, size uint64) (bool, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/syscall", pid))
	if err != nil {
		return false, err
	}
	for _, task := range tasks {
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			text, err := os.ReadFile(task)
			if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
				break // it has ended
			} else if err != nil {
				return false, err
			}
			fields := strings.Fields(string(text))
			if fields[0] == "running" {
				if time.Now().After(end) {
					return false, errors.New("it does not stand still")
				}
				continue
			}
			pc, err := strconv.ParseUint(strings.TrimPrefix(fields[len(fields)-1], "0x"), 16, 64)
			if err != nil {
				return false, err
			}
			if pc >= at && pc < at+size {
				return false, nil
			}
			break
		}
	}
	return len(tasks) > 0, nil
}
