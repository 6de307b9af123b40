package certs

import (
	"time"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// Held reports whether there is a valid certificate for id. To ask is not to use
// it: it does not keep the certificate from being forgotten.
func (c *Cache) Held(id mesh.Identity) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	e := c.entries[id]
	return e != nil && e.valid(time.Now())
}
