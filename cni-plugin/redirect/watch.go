package redirect

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/pkg/netns"
)

// Watch tells when the nftables rules of a namespace change, whoever does it, we
// too. Close it.
type Watch struct {
	socket *os.File
	done   chan struct{}
}

// groupNFTables is the kernel's group of notices about rules (NFNLGRP_NFTABLES).
const groupNFTables = 7

// NewWatch calls changed at every change of the rules, from a goroutine of its own,
// until Close. Changes that come close together may be told as one, and none is
// lost: when the kernel has dropped notices that is told as a change.
func NewWatch(ns *netns.NS, changed func()) (*Watch, error) {
	fd := -1
	err := ns.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
		return err
	})
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (groupNFTables - 1)})
	}
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return nil, fmt.Errorf("redirect: watch the rules of %s: %w", ns.ID(), err)
	}
	w := &Watch{socket: os.NewFile(uintptr(fd), "nftables notices"), done: make(chan struct{})}
	go w.run(changed)
	return w, nil
}

func (w *Watch) run(changed func()) {
	defer close(w.done)
	var notice [4096]byte // what it says does not matter: the rest of a longer one is dropped
	for {
		if _, err := w.socket.Read(notice[:]); err != nil && !errors.Is(err, unix.ENOBUFS) {
			return
		}
		changed()
	}
}

// Close ends the watch; changed is not called any more afterwards. Closing nil does
// nothing.
func (w *Watch) Close() {
	if w == nil {
		return
	}
	w.socket.Close()
	<-w.done
}
