package packet

import (
	"errors"
	"net"
	"os"
	"path/filepath"
)

// Listener is a listening socket and the file that is its address.
type Listener struct {
	*net.UnixListener
	path string
	own  os.FileInfo
}

// Listen makes the socket beside the path and moves it there, so that there is no
// moment at which who dials finds nothing. Only root may dial.
func Listen(path string) (*Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	next := path + ".new"
	if err := os.Remove(next); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: next, Net: "unixpacket"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	own, err := os.Lstat(next)
	if err = errors.Join(err, os.Chmod(next, 0o600), os.Rename(next, path)); err != nil {
		l.Close()
		return nil, err
	}
	return &Listener{l, path, own}, nil
}

// Close stops listening, and removes the file unless another has taken its place.
func (l *Listener) Close() error {
	if now, err := os.Lstat(l.path); err == nil && os.SameFile(l.own, now) {
		os.Remove(l.path)
	}
	return l.UnixListener.Close()
}
