// Package rawio makes the system calls of non-blocking sockets without telling the
// Go scheduler that they are system calls.
//
//	unix.Write   entersyscall ─ write(2) ─ exitsyscall   after 20 µs the thread has lost its place
//	rawio.Write                 write(2)                 the thread keeps it
//
// A segment that leaves for another namespace of the machine is taken through both
// network stacks by the thread that writes it, which often takes more than the 20 µs
// after which the runtime's monitor hands the thread's P to another thread. Where one
// P is all there is, it does so even if there is nothing else to run: a thread is
// woken to find that out, this one sleeps until it gets its place back, and the
// monitor never comes to rest. See docs/design/2026-11-connection-cost.md.
//
// The price is that a P waits while the kernel works. So the calls are for sockets
// in non-blocking mode only, and what moves more than Small bytes is an ordinary
// system call here too: the copying is worth another thread.
//
// All functions are safe for concurrent use, return a unix.Errno as their error, and
// EINTR and EAGAIN like any other.
package rawio

import (
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Small is how many bytes a raw call moves at most.
const Small = 16 << 10

// Read is read(2).
func Read(fd int, p []byte) (int, error) {
	if len(p) == 0 || len(p) > Small {
		return unix.Read(fd, p)
	}
	return result(unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p))))
}

// ReadSmall is read(2) of what is expected to be less than Small bytes, though p has
// room for more.
func ReadSmall(fd int, p []byte) (int, error) {
	if len(p) == 0 {
		return unix.Read(fd, p)
	}
	return result(unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p))))
}

// Write is write(2).
func Write(fd int, p []byte) (int, error) {
	if len(p) == 0 || len(p) > Small {
		return unix.Write(fd, p)
	}
	return result(unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p))))
}

// Ready reports whether a read would not wait: nil if there are bytes, or the end;
// EAGAIN if it would; the socket's error, which the kernel tells once.
func Ready(fd int) error {
	var one [1]byte
	_, _, e := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&one)), 1, unix.MSG_PEEK|unix.MSG_DONTWAIT, 0, 0)
	return failure(e)
}

// Shutdown ends the socket's sending direction.
func Shutdown(fd int) error {
	_, _, e := unix.RawSyscall(unix.SYS_SHUTDOWN, uintptr(fd), unix.SHUT_WR, 0)
	return failure(e)
}

// Connect is connect(2). The zone of an IPv6 address is not looked at: zone is its
// interface index.
func Connect(fd int, to netip.AddrPort, zone uint32) error {
	if to.Addr().Unmap().Is4() {
		sa := unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: to.Addr().Unmap().As4()}
		putPort(&sa.Port, to.Port())
		_, _, e := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa)), unix.SizeofSockaddrInet4)
		return failure(e)
	}
	sa := unix.RawSockaddrInet6{Family: unix.AF_INET6, Addr: to.Addr().As16(), Scope_id: zone}
	putPort(&sa.Port, to.Port())
	_, _, e := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa)), unix.SizeofSockaddrInet6)
	return failure(e)
}

// putPort stores a port in network byte order.
func putPort(field *uint16, port uint16) {
	b := (*[2]byte)(unsafe.Pointer(field))
	b[0], b[1] = byte(port>>8), byte(port)
}

// Set is setsockopt(2) of an int.
func Set(fd, level, name, value int) error {
	v := int32(value)
	_, _, e := unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name), uintptr(unsafe.Pointer(&v)), 4, 0)
	return failure(e)
}

func result(n, _ uintptr, e unix.Errno) (int, error) {
	if e != 0 {
		return -1, e
	}
	return int(n), nil
}

// failure is the errno as an error.
func failure(e unix.Errno) error {
	if e != 0 {
		return e
	}
	return nil
}
