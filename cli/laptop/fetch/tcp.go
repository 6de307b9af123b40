package fetch

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"time"
)

// tcp sends to a server that sends everything back.
func (r *run) tcp(ctx context.Context, addr string) error {
	dialer := net.Dialer{Timeout: r.opt.Timeout}
	began := time.Now()
	c, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		r.note(began, err)
		return nil
	}
	defer c.Close()
	conn := c.(*net.TCPConn)
	if r.opt.Bytes > 0 {
		r.note(began, r.exchange(ctx, conn))
		return nil
	}
	return r.converse(ctx, conn)
}

func (r *run) note(began time.Time, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.count(began, err)
}

// converse sends short messages on one connection, each after the answer to the
// one before. The first failure ends it: the connection is gone.
func (r *run) converse(ctx context.Context, c *net.TCPConn) error {
	broken := false
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	one := r.opt
	if one.Every > 0 { // a conversation does not overlap with itself
		r.opt.Every = 0
	}
	i := 0
	return r.pace(ctx, func(ctx context.Context) {
		if broken {
			return
		}
		began := time.Now()
		i++
		err := say(c, fmt.Sprintf("message %d\n", i), one.Timeout)
		r.note(began, err)
		if err != nil {
			broken = true
			cancel()
			return
		}
		if wait := one.Every - time.Since(began); wait > 0 {
			select {
			case <-time.After(wait):
			case <-ctx.Done():
			}
		}
	})
}

// say sends a message and wants the same back.
func say(c *net.TCPConn, message string, timeout time.Duration) error {
	if err := c.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, message); err != nil {
		return err
	}
	got := make([]byte, len(message))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if string(got) != message {
		return fmt.Errorf("sent %q, got %q back", message, got)
	}
	return nil
}

// errDamaged is what a transfer that lost or changed bytes ends with.
var errDamaged = errors.New("what came back is not what was sent")

// exchange sends opt.Bytes while it receives them, ends its direction, and
// compares the sums of both.
func (r *run) exchange(ctx context.Context, c *net.TCPConn) error {
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	sent := sha256.New()
	writing := make(chan error, 1)
	go func() { writing <- send(c, sent, r.opt.Bytes) }()
	received := sha256.New()
	n, err := io.CopyBuffer(struct{ io.Writer }{received}, struct{ io.Reader }{c}, make([]byte, 256<<10))
	if err != nil {
		c.Close()
	}
	if werr := <-writing; werr != nil {
		return fmt.Errorf("send: %w", werr)
	}
	if err != nil {
		return fmt.Errorf("receive: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.res.Bytes, r.res.SHA256 = n, hex.EncodeToString(received.Sum(nil))
	if n != r.opt.Bytes || !bytes.Equal(sent.Sum(nil), received.Sum(nil)) {
		return fmt.Errorf("%w: %d of %d bytes", errDamaged, n, r.opt.Bytes)
	}
	return nil
}

// send writes n random bytes and half-closes.
func send(c *net.TCPConn, sum hash.Hash, n int64) error {
	src := rand.NewChaCha8([32]byte{1})
	if _, err := io.CopyBuffer(io.MultiWriter(c, sum), io.LimitReader(struct{ io.Reader }{src}, n), make([]byte, 256<<10)); err != nil {
		return err
	}
	return c.CloseWrite()
}
