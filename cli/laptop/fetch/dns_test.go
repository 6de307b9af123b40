package fetch

import (
	"encoding/json"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func TestDNS(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.ListenPacket("udp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	answer := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		_, udp := w.RemoteAddr().(*net.UDPAddr)
		switch q.Question[0].Name {
		case "a.test.":
			m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: "a.test.", Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 5}, A: net.IPv4(192, 0, 2, 1)}}
			m.Truncated = udp
		case "1.2.0.192.in-addr.arpa.":
			m.Answer = []dns.RR{&dns.PTR{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypePTR, Class: dns.ClassINET}, Ptr: "a.test."}}
		default:
			m.Rcode = dns.RcodeNameError
			m.SetEdns0(4096, false)
			m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_EDE{ExtraText: "never heard of it"}}
		}
		w.WriteMsg(m)
	})
	for _, s := range []*dns.Server{{Listener: l, Handler: answer}, {PacketConn: c, Handler: answer}} {
		go s.ActivateAndServe()
		t.Cleanup(func() { s.Shutdown() })
	}
	at := "at=" + l.Addr().String()
	for _, url := range []string{"dns://a.test?" + at, "dns://a.test?tcp&type=a&" + at} {
		res, err := Do(t.Context(), Options{URL: url})
		if err != nil || res.OK != 1 || string(res.Answer.Body) != "a.test. A 192.0.2.1\n" {
			t.Errorf("%s: %v, %v", url, res, err)
		}
	}
	res, err := Do(t.Context(), Options{URL: "dns://192.0.2.1?type=PTR&" + at})
	if text, _ := json.Marshal(res); err != nil || !strings.Contains(string(text), `"body":"1.2.0.192.in-addr.arpa. PTR a.test.\n"`) {
		t.Errorf("the name of an address: %s, %v", text, err)
	}
	res, err = Do(t.Context(), Options{URL: "dns://b.test?type=SRV&" + at, Count: 3, Every: time.Microsecond})
	if err != nil || res.Failed != 3 || res.Errors["NXDOMAIN: never heard of it"] != 3 {
		t.Errorf("a name that does not exist: %v, %v", res, err)
	}
	if _, err := Do(t.Context(), Options{URL: "dns://b.test?type=NONSENSE&" + at}); err == nil {
		t.Error("a type that does not exist is asked for")
	}
	if _, err := Do(t.Context(), Options{URL: "dns:a.test?" + at}); err == nil {
		t.Error("a URL without a host is asked for")
	}
}
