package access

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const denied = `{"level":"error","time":"2026-08-22T10:00:01.5Z","scope":"access","message":"connection complete","src.addr":"10.244.1.3:4000","src.workload":"intruder-1","src.namespace":"shop","src.identity":"spiffe://cluster.local/ns/shop/sa/intruder","dst.addr":"10.244.2.4:15008","dst.hbone_addr":"10.244.2.4:8080","dst.workload":"cart-1","dst.namespace":"shop","direction":"inbound","bytes_sent":0,"bytes_recv":0,"duration":"1ms","error":"connection closed due to policy rejection: explicitly denied by: shop/cart-callers"}
`

const request = `{"level":"info","time":"2026-08-22T10:00:00.5Z","scope":"access","message":"request","src.addr":"10.244.1.3:4000","method":"GET","authority":"catalog","path":"/x","status":200,"flags":"-","bytes_recv":0,"bytes_sent":12,"duration":"2ms"}
`

func TestRead(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"ztunnel-node-1.log":   "not JSON\n" + `{"level":"info","scope":"xds","message":"connected"}` + "\n" + denied,
		"pod_shop_way-1.log":   request,
		"controlplane.log":     denied,
		"ztunnel-node-1.log.1": "",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := Read(dir)
	if err != nil || len(got) != 2 {
		t.Fatalf("%d records, %v; want 2", len(got), err)
	}
	if !got[0].IsRequest() || got[0].Status != 200 || got[0].Component != "shop/way-1" {
		t.Errorf("first: %+v", got[0])
	}
	broken := Record{Direction: "outbound", BytesSent: 7, BytesRecv: 9, Error: "tunnel closed"}
	if line := broken.String(); !strings.Contains(line, "7→ 9← bytes") || !strings.Contains(line, "BROKEN tunnel closed") {
		t.Errorf("a connection that broke: %s", line)
	}
	line := got[1].String()
	for _, want := range []string{"node-1 inbound", "shop/intruder-1", "as spiffe://cluster.local/ns/shop/sa/intruder", "0→ 0← bytes", "REFUSED", "explicitly denied by: shop/cart-callers"} {
		if !strings.Contains(line, want) {
			t.Errorf("line %q lacks %q", line, want)
		}
	}
}
