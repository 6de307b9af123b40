package xds

import (
	"maps"
	"time"
)

// Restore notes, before Run, which resources of a type an earlier process has left
// behind, with their versions: the server is told them, so that only differences
// come. heard is when that process last heard of the control plane. It does
// nothing for an unknown type, and is not a first snapshot.
func (c *Client) Restore(typeURL string, versions map[string]string, heard time.Time) {
	st := c.byURL[typeURL]
	if st == nil {
		return
	}
	st.mu.Lock()
	st.versions = maps.Clone(versions)
	st.mu.Unlock()
	if !heard.IsZero() {
		c.heard.Store(heard.UnixNano())
	}
}

// Held returns the versions of the resources of a type that are held, by name. A
// resource may be newer than that, never older.
func (c *Client) Held(typeURL string) map[string]string {
	st := c.byURL[typeURL]
	if st == nil {
		return nil
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	return maps.Clone(st.versions)
}

// Heard returns up to when what is held was current: now while there is a stream,
// else the end of the last one, also of an earlier process (Restore); zero if there
// was none.
func (c *Client) Heard() time.Time {
	if c.down.Load() == 0 && c.connected.Load() {
		return time.Now()
	}
	if n := c.heard.Load(); n != 0 {
		return time.Unix(0, n)
	}
	return time.Time{}
}

// Away returns for how long there has been no stream, since Run at most; 0 while
// there is one.
func (c *Client) Away() time.Duration {
	if n := c.down.Load(); n != 0 {
		return max(time.Since(time.Unix(0, n)), 1)
	}
	return 0
}
