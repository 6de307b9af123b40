package handover

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// seals make a memfd immutable for everybody, its maker included.
const seals = unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL

// Seal makes a memfd of what fill writes, and seals it. name is for /proc only.
func Seal(name string, fill func(io.Writer) error) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("seal %s: %w", name, os.NewSyscallError("memfd_create", err))
	}
	f := os.NewFile(uintptr(fd), name)
	w := bufio.NewWriterSize(&bounded{w: f, left: MaxSection}, 64<<10)
	err = fill(w)
	if err == nil {
		err = w.Flush()
	}
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("seal %s: %w", name, err)
	}
	return f, nil
}

// bounded refuses to write more than a store would take.
type bounded struct {
	w    io.Writer
	left int
}

func (b *bounded) Write(p []byte) (int, error) {
	if b.left -= len(p); b.left < 0 {
		return 0, fmt.Errorf("more than %d bytes", MaxSection)
	}
	return b.w.Write(p)
}

// checkSealed makes sure that fd is a sealed memfd of bearable size.
func checkSealed(fd int) (size int64, err error) {
	got, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil {
		return 0, fmt.Errorf("not a memfd: %w", err)
	}
	if got&seals != seals {
		return 0, fmt.Errorf("memfd is not sealed: seals %#x, want %#x", got, seals)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, os.NewSyscallError("fstat", err)
	}
	if st.Size > MaxSection {
		return 0, fmt.Errorf("memfd of %d bytes, at most %d", st.Size, MaxSection)
	}
	return st.Size, nil
}

// readSealed returns the content of a sealed memfd, which it closes.
func readSealed(fd int) ([]byte, error) {
	f := os.NewFile(uintptr(fd), "section")
	defer f.Close()
	size, err := checkSealed(fd)
	if err != nil {
		return nil, err
	}
	p := make([]byte, size)
	// The offset is shared with the store's descriptor: it must not matter.
	if n, err := f.ReadAt(p, 0); err != nil && !(errors.Is(err, io.EOF) && n == len(p)) {
		return nil, err
	}
	return p, nil
}
