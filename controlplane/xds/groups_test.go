package xds

import (
	"slices"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/culvert-mesh/culvert/controlplane/source"
)

const kind = "type.googleapis.com/google.protobuf.StringValue"

func put(c *Cache, name, value string, edit func(*Resource)) {
	r := NewResource(name, wrapperspb.String(value), nil, "")
	edit(&r)
	c.Apply([]Update{{Owner: source.Key{Name: name}, Resources: []Resource{r}}})
}

func service(c *Cache, name string, aliases ...string) {
	put(c, name, name, func(r *Resource) { r.Group, r.Aliases = name, aliases })
}

func pod(c *Cache, name, value string, groups ...string) {
	put(c, name, value, func(r *Resource) { r.Groups = groups })
}

// sent returns the names that the stream is due, and those it is told are gone.
func sent(s *stream, c *Cache) (names, removed []string) {
	for _, r := range s.collect(c) {
		m := read(r)
		for _, r := range m.GetResources() {
			names = append(names, r.GetName())
		}
		removed = append(removed, m.GetRemovedResources()...)
	}
	slices.Sort(names)
	return names, removed
}

func expect(t *testing.T, what string, s *stream, c *Cache, want, gone []string) {
	t.Helper()
	if names, removed := sent(s, c); !slices.Equal(names, want) || !slices.Equal(removed, gone) {
		t.Errorf("%s: sent %q, removed %q; want %q and %q", what, names, removed, want, gone)
	}
}

// Who asks by name gets what is on its own node, and with a service its endpoints:
// those there are, those to come, and that they go; and nothing else.
func TestOnDemand(t *testing.T) {
	t.Parallel()
	c := NewCache()
	service(c, "shop/cart", "/10.96.0.7")
	service(c, "shop/other")
	pod(c, "cart-1", "a", "shop/cart", NodeGroup("node-2"))
	pod(c, "other-1", "a", "shop/other", NodeGroup("node-2"))
	pod(c, "mine", "a", NodeGroup("node-1"))

	s := newStream(Client{Node: "node-1"}, []string{kind})
	c.streams[s] = struct{}{}
	ask := func(subscribe, unsubscribe []string, held map[string]string) {
		s.request(c, &discovery.DeltaDiscoveryRequest{TypeUrl: kind, ResourceNamesSubscribe: subscribe,
			ResourceNamesUnsubscribe: unsubscribe, InitialResourceVersions: held}, time.Now())
	}
	ask([]string{"*"}, []string{"*"}, nil)
	expect(t, "first", s, c, []string{"mine"}, nil)
	ask([]string{"/10.96.0.7"}, nil, nil)
	expect(t, "a service by address", s, c, []string{"cart-1", "shop/cart"}, nil)
	pod(c, "cart-2", "a", "shop/cart")
	pod(c, "other-2", "a", "shop/other")
	expect(t, "a new endpoint", s, c, []string{"cart-2"}, nil)
	pod(c, "cart-1", "b", "shop/cart", NodeGroup("node-2"))
	pod(c, "other-1", "b", "shop/other", NodeGroup("node-2"))
	expect(t, "a changed endpoint", s, c, []string{"cart-1"}, nil)
	c.Apply([]Update{{Owner: source.Key{Name: "cart-2"}}})
	expect(t, "an endpoint is gone", s, c, nil, []string{"cart-2"})
	ask([]string{"/192.0.2.1"}, nil, nil)
	expect(t, "an address outside", s, c, nil, []string{"/192.0.2.1"})
	service(c, "shop/late", "/192.0.2.1")
	pod(c, "late-1", "a", "shop/late")
	expect(t, "it means something now", s, c, []string{"late-1", "shop/late"}, nil)
	ask(nil, []string{"/10.96.0.7"}, nil)
	pod(c, "cart-1", "c", "shop/cart")
	expect(t, "not asked for any more", s, c, nil, nil)
}

// A client that comes back tells what it holds and is sent what differs.
func TestOnDemandReconnect(t *testing.T) {
	t.Parallel()
	c := NewCache()
	service(c, "shop/cart", "/10.96.0.7")
	pod(c, "cart-1", "a", "shop/cart")
	pod(c, "cart-2", "a", "shop/cart")
	held := map[string]string{"gone": "x"}
	for _, n := range []string{"shop/cart", "cart-1"} {
		held[n] = c.types[kind].named(n, "").Version
	}
	s := newStream(Client{}, []string{kind})
	c.streams[s] = struct{}{}
	s.request(c, &discovery.DeltaDiscoveryRequest{TypeUrl: kind, ResourceNamesSubscribe: []string{"/10.96.0.7"}, InitialResourceVersions: held}, time.Now())
	expect(t, "after a reconnect", s, c, []string{"cart-2"}, []string{"gone"})
	pod(c, "cart-3", "a", "shop/cart")
	expect(t, "a new endpoint", s, c, []string{"cart-3"}, nil)
}
