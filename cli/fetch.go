package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/cli/laptop"
	"github.com/culvert-mesh/culvert/cli/laptop/fetch"
)

func fetchCommand(e *env) *cobra.Command {
	c := &cobra.Command{
		Use:   "fetch URL",
		Short: "Make requests and count: one, or a paced load (for use with exec)",
		Long: `Make requests and count: one, or a paced load.

  http://host/path   HTTP/1.1 requests, each on its own connection
  tcp://host:port    to a TCP echo server: short messages on one connection, or
                     --bytes in one go, both directions at once, with SHA-256
  dns://name?type=A  DNS queries; "tcp" for over TCP, "at=ADDRESS" for that server:
                     dns://cart?tcp, 'dns://_80._tcp.cart.shop?type=SRV&tcp'. With
                     type=PTR the name may be an address

Exit status 1 when anything failed: no answer, or an HTTP status from 400.`,
		Example: "  culvert exec frontend -- culvert fetch http://catalog/ --count 100 --by X-Echo-Version",
		Args:    exactly(1, "fetch wants one URL", "such as: culvert exec frontend -- culvert fetch http://cart/"),
	}
	var o fetch.Options
	var headers []string
	var include bool
	out := outputFlag(c)
	f := c.Flags()
	f.IntVarP(&o.Count, "count", "n", 0, "how many requests")
	f.DurationVar(&o.Every, "every", 0, "start one each so often")
	f.DurationVar(&o.For, "for", 0, "go on for so long")
	f.DurationVar(&o.Timeout, "timeout", 0, "give up on one after so long (default 10s)")
	f.BoolVar(&o.KeepAlive, "keep-alive", false, "reuse connections")
	f.StringVar(&o.By, "by", "", "count answers by this response header")
	f.StringVarP(&o.Method, "method", "X", "", "HTTP method (default GET, or POST with --data)")
	f.StringVarP(&o.Body, "data", "d", "", "body of the request")
	f.StringArrayVarP(&headers, "header", "H", nil, "header \"Name: value\" (repeatable)")
	f.BoolVarP(&include, "include", "i", false, "show status and headers of a single answer")
	touch := f.String("touch", "", "make this file when the first answer has come")
	size := f.String("bytes", "", "tcp: exchange so many bytes in one go, such as 64MiB")
	c.RunE = func(c *cobra.Command, args []string) (err error) {
		o.URL = args[0]
		if o.Header, err = parseHeaders(headers); err != nil {
			return err
		}
		if o.Body != "" && o.Method == "" {
			o.Method = http.MethodPost
		}
		if *size != "" {
			if o.Bytes, err = parseBytes(*size); err != nil {
				return err
			}
		}
		if *touch != "" {
			o.Started = func() { err = os.WriteFile(*touch, nil, 0o644) }
		}
		res, err := fetch.Do(c.Context(), o)
		if err != nil {
			return err
		}
		if err := out.write(e.stdout, res, func(w io.Writer) error { return printResult(w, res, include) }); err != nil {
			return err
		}
		if res.Failed > 0 {
			return exitStatus(1)
		}
		return nil
	}
	return c
}

// printResult writes a single answer as it came, and a load as its counts.
func printResult(w io.Writer, res *fetch.Result, include bool) error {
	a := res.Answer
	if a == nil {
		_, err := fmt.Fprintln(w, res)
		return err
	}
	if include || a.Code >= 400 {
		fmt.Fprintf(w, "HTTP %s\n", a.Status)
	}
	if include {
		if err := a.Header.Write(w); err != nil {
			return err
		}
		fmt.Fprintln(w)
	}
	if _, err := w.Write(a.Body); err != nil {
		return err
	}
	if len(a.Body) > 0 && a.Body[len(a.Body)-1] != '\n' {
		fmt.Fprintln(w)
	}
	return nil
}

func parseHeaders(list []string) (http.Header, error) {
	h := http.Header{}
	for _, s := range list {
		name, value, ok := strings.Cut(s, ":")
		if !ok {
			return nil, laptop.WithHint(fmt.Errorf("--header %q: no colon", s), `write it as "Name: value"`)
		}
		h.Add(strings.TrimSpace(name), strings.TrimSpace(value))
	}
	return h, nil
}

// parseBytes reads a size such as 1000, 64KiB, 10MiB or 1GiB.
func parseBytes(s string) (int64, error) {
	unit := int64(1)
	number := s
	for suffix, n := range map[string]int64{"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30} {
		if rest, ok := strings.CutSuffix(s, suffix); ok {
			number, unit = rest, n
		}
	}
	var n int64
	if _, err := fmt.Sscanf(number, "%d", &n); err != nil || n <= 0 || fmt.Sprint(n) != number {
		return 0, laptop.WithHint(fmt.Errorf("--bytes %q is no size", s), "write it as 1000, 64KiB, 10MiB or 1GiB")
	}
	return n * unit, nil
}
