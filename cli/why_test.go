package main

import "testing"

func TestParseWhy(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		from, to string
		args     []string
		want     whyQuestion
	}{
		{args: []string{"front", "cart:80"}, want: whyQuestion{"front", "cart", 80}},
		{from: "shop/front", args: []string{"cart.shop:80"}, want: whyQuestion{"shop/front", "cart.shop", 80}},
		{to: "[fd00::1]:443", args: []string{"front"}, want: whyQuestion{"front", "fd00::1", 443}},
		{from: "a", to: "10.0.0.1:1", want: whyQuestion{"a", "10.0.0.1", 1}},
		{args: []string{"front", "http://cart/items"}, want: whyQuestion{"front", "cart", 80}},
		{args: []string{"front", "https://[fd00::1]"}, want: whyQuestion{"front", "fd00::1", 443}},
		{args: []string{"front", "tcp://cart:9000"}, want: whyQuestion{"front", "cart", 9000}},
	} {
		if got, err := parseWhy(c.from, c.to, c.args); err != nil || got != c.want {
			t.Errorf("%+v: %+v, %v", c, got, err)
		}
	}
	for _, bad := range [][]string{nil, {"front"}, {"front", "cart"}, {"front", "cart:http"}, {"front", "cart:0"}, {"front", ":80"}, {"front", "cart:70000"}, {"front", "cart:80", "more"}, {"front", "tcp://cart"}} {
		if got, err := parseWhy("", "", bad); err == nil {
			t.Errorf("%q: %+v", bad, got)
		}
	}
}
