// Package podns finds the network namespace of a pod that runs already.
//
//	Finder ◀─┬─ Dir:  a directory of namespaces bound at files named by pod UID
//	         └─ Proc: the processes of the pod's containers
//
// A Finder is safe for concurrent use.
package podns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/netns"
)

// ErrNotFound says that the pod has no namespace, or none yet.
var ErrNotFound = errors.New("the pod's network namespace is not there")

// Finder finds namespaces.
type Finder interface {
	// Find opens the namespace of a pod; the caller closes it. The error has
	// ErrNotFound in its chain when there is none.
	Find(uid mesh.PodUID) (*netns.NS, error)
}

// Dir finds the namespace of pod U bound at <Dir>/U.
type Dir string

// Find implements Finder.
func (d Dir) Find(uid mesh.PodUID) (*netns.NS, error) {
	name := string(uid)
	if name == "" || strings.ContainsAny(name, "/\x00") || name == "." || name == ".." {
		return nil, fmt.Errorf("find namespace of pod %q: not a pod UID", name)
	}
	ns, err := netns.Open(filepath.Join(string(d), name))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("find namespace of pod %s in %s: %w", uid, string(d), ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("find namespace of pod %s: %w", uid, err)
	}
	return ns, nil
}

// Bound opens the namespaces that are bound at files of a folder, as runtimes do in
// /run/netns; the caller closes them. Files that are none are left out, and a folder
// that is not there has none.
func Bound(dir string) []*netns.NS {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var all []*netns.NS
	for _, e := range entries {
		if ns, err := netns.Open(filepath.Join(dir, e.Name())); err == nil {
			all = append(all, ns)
		}
	}
	return all
}

// Check makes sure that a namespace may be taken for a pod's: that it is not the
// node's own, and, when the pod's addresses are known, that one of them is there.
// A path or an address may have passed to another pod since it was written down.
func Check(ns *netns.NS, ips []netip.Addr) error {
	own, err := netns.Current()
	if err != nil {
		return err
	}
	defer own.Close()
	if own.ID() == ns.ID() {
		return errors.New("check namespace: it is the node's own")
	}
	if len(ips) == 0 {
		return nil
	}
	var addrs []net.Addr
	if err := ns.Do(func() error { addrs, err = net.InterfaceAddrs(); return err }); err != nil {
		return fmt.Errorf("check namespace %s: %w", ns.ID(), err)
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && slices.Contains(ips, p.Addr().Unmap()) {
			return nil
		}
	}
	return fmt.Errorf("check namespace %s: none of the pod's addresses %v is there", ns.ID(), ips)
}
