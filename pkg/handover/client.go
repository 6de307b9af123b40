package handover

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/culvert-mesh/culvert/pkg/run"

	"github.com/culvert-mesh/culvert/pkg/packet"
)

// callTimeout bounds one request. The store answers from memory, but an answer that
// is not waited for is a start without what the predecessor knew.
const callTimeout = 10 * time.Second

// Waits between two attempts to connect. Dialling a local socket costs nothing,
// and what dies before the store is back is lost.
const (
	minWait = 20 * time.Millisecond
	maxWait = 2 * time.Second
)

// ClientConfig configures a Client.
type ClientConfig struct {
	// Path is the store's socket. Conn, when set, is used instead, and not
	// connected again when it ends.
	Path string
	Conn *net.UnixConn
	// Private says that no successor in another process tree takes from this
	// store: what stays in it is not accepted by anybody once we have left.
	Private bool
	Log     *slog.Logger
	// Attached, when set, is called by Run after every connection that it made:
	// a store that has been started again knows nothing.
	Attached func()
	// Superseded, when set, is told whether a newer ztunnel serves. It must not
	// block.
	Superseded func(bool)
}

// Client is a ztunnel's end. Its requests fail with ErrDetached while there is no
// connection.
type Client struct {
	cfg  ClientConfig
	born time.Duration

	calls sync.Mutex // one request at a time

	mu     sync.Mutex
	link   *link
	status Status // reported anew to every store

	superseded atomic.Bool // as the last store said, also after its end
	reached    atomic.Bool // a store was there once
}

// link is one connection.
type link struct {
	conn    *net.UnixConn
	answers chan answer
	ended   chan struct{}
	err     error // after ended
	next    uint64
}

type answer struct {
	message
	fds []int
}

// NewClient returns a client that is not attached.
func NewClient(cfg ClientConfig) *Client {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	born := sinceBoot()
	return &Client{cfg: cfg, born: born, status: Status{State: Starting, Born: born}}
}

// Attach connects once, without waiting for a store that is not there. Run goes on
// with the connection.
func (c *Client) Attach() error {
	conn := c.cfg.Conn
	if conn == nil {
		var err error
		if conn, err = net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: c.cfg.Path, Net: "unixpacket"}); err != nil {
			return fmt.Errorf("attach to the store: %w", err)
		}
	}
	if _, err := checkPeer(conn); err != nil {
		conn.Close()
		return fmt.Errorf("attach to the store: %w", err)
	}
	l := &link{conn: conn, answers: make(chan answer), ended: make(chan struct{})}
	c.mu.Lock()
	c.link = l
	status := c.status
	c.mu.Unlock()
	c.reached.Store(true)
	go c.receive(l)
	return c.Report(status)
}

// Run keeps a connection to the store until ctx ends, and then returns nil.
func (c *Client) Run(ctx context.Context) error {
	defer c.close()
	backoff := run.NewBackoff(minWait, maxWait)
	said := false
	for ctx.Err() == nil {
		l := c.current()
		if l == nil {
			if c.cfg.Conn != nil {
				<-ctx.Done()
				return nil
			}
			if err := c.Attach(); err != nil {
				if !said {
					c.cfg.Log.Info("nobody holds sockets for a successor", "path", c.cfg.Path, "error", err)
				}
				said = true
				run.Sleep(ctx, backoff.Next())
				continue
			}
			c.cfg.Log.Info("attached to the store of sockets", "path", c.cfg.Path)
			if c.cfg.Attached != nil {
				c.cfg.Attached()
			}
			continue
		}
		select {
		case <-l.ended:
			c.cfg.Log.Warn("the store of sockets is gone", "path", c.cfg.Path, "error", l.err)
			backoff.Reset()
			said = false
		case <-ctx.Done():
		}
	}
	return nil
}

// current returns the connection that is up, nil for none.
func (c *Client) current() *link {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.link != nil {
		select {
		case <-c.link.ended:
			c.link = nil
		default:
		}
	}
	return c.link
}

func (c *Client) close() {
	if l := c.current(); l != nil {
		l.conn.Close()
		<-l.ended
	}
}

// receive passes answers on, and what the store says unasked. What the store before
// has said holds until this one speaks.
func (c *Client) receive(l *link) {
	defer close(l.ended)
	defer l.conn.Close()
	for first := true; ; first = false {
		m, fds, err := read(l.conn)
		if err != nil {
			l.err = err
			return
		}
		if m.Op == opSuperseded {
			c.setSuperseded(m.On)
			continue
		}
		if first {
			c.setSuperseded(false)
		}
		select {
		case l.answers <- answer{m, fds}:
		case <-time.After(callTimeout):
			packet.Close(fds...)
			l.err = errors.New("an answer that nobody waits for")
			return
		}
	}
}

func (c *Client) setSuperseded(now bool) {
	if c.superseded.Swap(now) != now && c.cfg.Superseded != nil {
		c.cfg.Superseded(now)
	}
}

// Superseded reports whether a newer ztunnel that shares the store serves. When the
// store ends, as with an agent that restarts, the successor has not.
func (c *Client) Superseded() bool { return c.superseded.Load() }

// Attached reports whether there is a connection.
func (c *Client) Attached() bool { return c.current() != nil }

// call makes one request. A store that does not answer is left.
func (c *Client) call(m message, fds []int) (message, []int, error) {
	c.calls.Lock()
	defer c.calls.Unlock()
	l := c.current()
	if l == nil {
		return message{}, nil, ErrDetached
	}
	l.next++
	m.ID = l.next
	l.conn.SetWriteDeadline(time.Now().Add(callTimeout))
	if err := write(l.conn, m, fds); err != nil {
		return message{}, nil, fmt.Errorf("%s: %w", m.Op, err)
	}
	late := time.NewTimer(callTimeout)
	defer late.Stop()
	select {
	case a := <-l.answers:
		if a.ID != m.ID {
			packet.Close(a.fds...)
			l.conn.Close()
			return message{}, nil, fmt.Errorf("%s: %w: answer to another request", m.Op, packet.ErrMalformed)
		}
		if a.Error != "" {
			packet.Close(a.fds...)
			return message{}, nil, fmt.Errorf("%s: refused: %s", m.Op, a.Error)
		}
		return a.message, a.fds, nil
	case <-l.ended:
		return message{}, nil, fmt.Errorf("%s: %w: %w", m.Op, ErrDetached, l.err)
	case <-late.C:
		l.conn.Close()
		return message{}, nil, fmt.Errorf("%s: no answer within %s", m.Op, callTimeout)
	}
}

// Put deposits duplicates of sockets, by name. The descriptors stay the caller's.
func (c *Client) Put(k Key, names []string, fds []int) error {
	_, _, err := c.call(message{Op: opPut, Pod: string(k.Pod), Namespace: k.Namespace, Names: names}, fds)
	return err
}

// Take returns what is deposited for a pod, by name. The files are the caller's.
func (c *Client) Take(k Key) (map[string]*os.File, error) {
	m, fds, err := c.call(message{Op: opTake, Pod: string(k.Pod), Namespace: k.Namespace}, nil)
	if err != nil {
		return nil, err
	}
	out := make(map[string]*os.File, len(fds))
	for i, name := range m.Names {
		out[name] = os.NewFile(uintptr(fds[i]), name)
	}
	return out, nil
}

// Drop has the sockets of a pod in a namespace forgotten.
func (c *Client) Drop(k Key) error {
	_, _, err := c.call(message{Op: opDrop, Pod: string(k.Pod), Namespace: k.Namespace}, nil)
	return err
}

// Save deposits a sealed section, which stays the caller's.
func (c *Client) Save(section string, f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("save: %w", err)
	}
	var cerr error
	err = raw.Control(func(fd uintptr) {
		_, _, cerr = c.call(message{Op: opSave, Section: section}, []int{int(fd)})
	})
	return errors.Join(err, cerr)
}

// Load returns the content of a section, nil when there is none.
func (c *Client) Load(section string) ([]byte, error) {
	_, fds, err := c.call(message{Op: opLoad, Section: section}, nil)
	if err != nil || len(fds) == 0 {
		return nil, err
	}
	p, err := readSealed(fds[0])
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", section, err)
	}
	return p, nil
}

// Report says how this ztunnel is; it is said again to a store that comes later.
func (c *Client) Report(s Status) error {
	s.Born = c.born
	c.mu.Lock()
	c.status = s
	c.mu.Unlock()
	_, _, err := c.call(message{Op: opReport, Status: &s}, nil)
	return err
}
