package relay

import (
	"os"

	"golang.org/x/sys/unix"
)

// pipeSize is how much one splice moves at most.
const pipeSize = 256 << 10

// pipe is a kernel buffer between two sockets.
type pipe struct{ r, w int }

// spare holds a few empty pipes for the next borrower.
var spare = make(chan *pipe, 16)

// borrowPipe returns an empty pipe.
func borrowPipe() (*pipe, error) {
	select {
	case p := <-spare:
		return p, nil
	default:
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	// Without the privilege for a large pipe the default of 64 KiB does as well.
	_, _ = unix.FcntlInt(uintptr(fds[1]), unix.F_SETPIPE_SZ, pipeSize)
	return &pipe{fds[0], fds[1]}, nil
}

// giveBack takes an empty pipe back.
func (p *pipe) giveBack() {
	select {
	case spare <- p:
	default:
		p.close()
	}
}

func (p *pipe) close() {
	_ = unix.Close(p.r)
	_ = unix.Close(p.w)
}
