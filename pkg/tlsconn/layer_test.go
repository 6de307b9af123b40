package tlsconn

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/pkg/hbone/hbonetest"
)

var clientID, serverID = hbonetest.Identity("client"), hbonetest.Identity("server")

// ours returns both ends of a connection, each with a layer of its own.
func ours(t testing.TB) (client, server *Conn) {
	t.Helper()
	ca := hbonetest.NewCA(t)
	a, b := hbonetest.TCPPair(t)
	done := make(chan error, 1)
	go func() {
		var err error
		server, err = Server(context.Background(), b, ca.Server(t, serverID))
		done <- err
	}()
	client, err := Client(context.Background(), a, ca.Client(t, clientID, serverID))
	if err := errors.Join(err, <-done); err != nil {
		t.Fatal(err)
	}
	if client.layer == nil || server.layer == nil {
		t.Fatal("crypto/tls carries the records")
	}
	return client, server
}

// oracle returns one of ours and crypto/tls's own connection, in either role.
func oracle(t testing.TB, weAreServer bool) (*Conn, *tls.Conn) {
	t.Helper()
	ca := hbonetest.NewCA(t)
	a, b := hbonetest.TCPPair(t)
	var peer *tls.Conn
	var c *Conn
	var err error
	shook := make(chan error, 1)
	if weAreServer {
		peer = tls.Client(b, ca.Client(t, clientID, serverID))
		go func() { shook <- peer.Handshake() }()
		c, err = Server(context.Background(), a, ca.Server(t, serverID))
	} else {
		peer = tls.Server(b, ca.Server(t, serverID))
		go func() { shook <- peer.Handshake() }()
		c, err = Client(context.Background(), a, ca.Client(t, clientID, serverID))
	}
	if err := errors.Join(err, <-shook); err != nil {
		t.Fatal(err)
	}
	return c, peer
}

// exchange sends size bytes each way at once and compares what arrives.
func exchange(t *testing.T, a, b io.ReadWriter, size int) {
	t.Helper()
	var wg sync.WaitGroup
	for _, way := range [][2]io.ReadWriter{{a, b}, {b, a}} {
		msg := make([]byte, size)
		_, _ = rand.Read(msg)
		wg.Go(func() {
			for p, n := msg, 1; len(p) > 0; n = n*3%70_001 + 1 {
				n = min(n, len(p))
				if _, err := way[0].Write(p[:n]); err != nil {
					t.Errorf("write: %v", err)
					return
				}
				p = p[n:]
			}
		})
		wg.Go(func() {
			got := make([]byte, size)
			if _, err := io.ReadFull(way[1], got); err != nil || !bytes.Equal(got, msg) {
				t.Errorf("read: %v, equal %v", err, bytes.Equal(got, msg))
			}
		})
	}
	wg.Wait()
}

// Our keys change every few records, and crypto/tls's when we ask for it, in the
// middle of bulk in both directions.
func TestKeyUpdate(t *testing.T) {
	t.Parallel()
	for _, weAreServer := range []bool{false, true} {
		c, peer := oracle(t, weAreServer)
		c.layer.limit = 7
		c.wmu.Lock()
		ask := c.layer.small(typeHandshake, []byte{msgKeyUpdate, 0, 0, 1, 1})
		err := c.layer.out.update()
		_, werr := c.t.conn.Write(ask)
		c.wmu.Unlock()
		if err := errors.Join(err, werr); err != nil {
			t.Fatal(err)
		}
		exchange(t, c, peer, 3<<20)
		exchange(t, c, peer, 1<<20)
		if n := c.Counts(); n.KeyUpdatesSent < 20 || n.KeyUpdatesReceived != 1 {
			t.Errorf("server %v: %+v", weAreServer, n)
		}
	}
}

// A peer that asks for new keys gets them before the next data, and not twice.
func TestKeyUpdateRequested(t *testing.T) {
	t.Parallel()
	client, server := ours(t)
	client.wmu.Lock()
	ask := client.layer.small(typeHandshake, []byte{msgKeyUpdate, 0, 0, 1, 1})
	err := client.layer.out.update()
	_, werr := client.t.conn.Write(ask)
	client.wmu.Unlock()
	if err := errors.Join(err, werr); err != nil {
		t.Fatal(err)
	}
	exchange(t, client, server, 1<<20)
	exchange(t, client, server, 1<<20)
	if n := server.Counts(); n.KeyUpdatesReceived != 1 || n.KeyUpdatesSent != 1 {
		t.Errorf("server: %+v", n)
	}
	if n := client.Counts(); n.KeyUpdatesReceived != 1 || n.KeyUpdatesSent != 0 {
		t.Errorf("client: %+v", n)
	}
}

// What crypto/tls has written is read, and the other way round, to the end. It
// sends no session tickets to who has no use for them.
func TestOracle(t *testing.T) {
	t.Parallel()
	for _, weAreServer := range []bool{false, true} {
		c, peer := oracle(t, weAreServer)
		exchange(t, c, peer, 5<<20)
		if n := c.Counts().Tickets; n > 0 {
			t.Errorf("server %v: %d tickets", weAreServer, n)
		}
		_ = c.CloseWrite()
		if _, err := peer.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("after close_notify: %v", err)
		}
		_ = peer.CloseWrite()
		if _, err := c.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("after the peer's close_notify: %v", err)
		}
		if _, err := c.Write([]byte("late")); err == nil {
			t.Error("written after close_notify")
		}
	}
}

// TLS 1.2 stays with crypto/tls, and looks the same to callers.
func TestWithoutLayer(t *testing.T) {
	t.Parallel()
	ca := hbonetest.NewCA(t)
	a, b := hbonetest.TCPPair(t)
	old := ca.Server(t, serverID)
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	cfg := ca.Client(t, clientID, serverID)
	cfg.MinVersion = tls.VersionTLS12
	made := make(chan *Conn, 1)
	go func() {
		s, err := Server(context.Background(), b, old)
		if err != nil {
			t.Error(err)
		}
		made <- s
	}()
	client, err := Client(context.Background(), a, cfg)
	if err != nil {
		t.Fatal(err)
	}
	server := <-made
	if client.layer != nil || server.layer != nil {
		t.Error("a layer for TLS 1.2")
	}
	exchange(t, client, server, 1<<20)
	run := make([]byte, RunLength(20000))
	if n := Append(run, 0, bytes.Repeat([]byte("x"), 20000)); n != 20000 {
		t.Fatalf("run of %d", n)
	}
	if err := client.WriteRecords([][]byte{run}); err != nil {
		t.Fatal(err)
	}
	_ = client.CloseWrite()
	var got []byte
	for err == nil {
		var list [][]byte
		list, err = server.Records(nil)
		got = append(got, bytes.Join(list, nil)...)
	}
	if err != io.EOF || !bytes.Equal(got, bytes.Repeat([]byte("x"), 20000)) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// The configuration's own key log still gets its lines.
func TestKeyLogPassesThrough(t *testing.T) {
	t.Parallel()
	ca := hbonetest.NewCA(t)
	a, b := hbonetest.TCPPair(t)
	go func() { _, _ = Server(context.Background(), b, ca.Server(t, serverID)) }()
	var log bytes.Buffer
	cfg := ca.Client(t, clientID, serverID)
	cfg.KeyLogWriter = &log
	if _, err := Client(context.Background(), a, cfg); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(log.String(), "_TRAFFIC_SECRET_0 "); n != 2 {
		t.Errorf("%d secrets in the key log", n)
	}
}

// Nothing of the secrets is left when they have been taken over.
func TestSecretsAreWiped(t *testing.T) {
	t.Parallel()
	var s secrets
	for _, label := range []string{labelClient, labelServer} {
		if _, err := s.Write([]byte(label + " 00 " + strings.Repeat("ab", 32) + "\n")); err != nil {
			t.Fatal(err)
		}
	}
	kept := [][]byte{s.client, s.server}
	s.wipe()
	if s.client != nil || s.server != nil || !bytes.Equal(bytes.Join(kept, nil), make([]byte, 64)) {
		t.Errorf("%x is left", kept)
	}
}

// RFC 8448 §3: the server's application keys.
func TestKeySchedule(t *testing.T) {
	t.Parallel()
	unhex := func(s string) []byte { p, _ := hex.DecodeString(s); return p }
	s, _ := suiteOf(tls.TLS_AES_128_GCM_SHA256)
	secret := unhex("a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643")
	for label, want := range map[string]string{"key": "9f02283b6c9c07efc26bb9f2ac92e356", "iv": "cf782b88dd83549aadf1e984"} {
		if got, err := s.expandLabel(secret, label, len(want)/2); err != nil || !bytes.Equal(got, unhex(want)) {
			t.Errorf("%s is %x, %v", label, got, err)
		}
	}
}

// No key seals two records with one nonce, and no two keys share the iv.
func TestNonces(t *testing.T) {
	t.Parallel()
	for _, id := range []uint16{tls.TLS_AES_128_GCM_SHA256, tls.TLS_AES_256_GCM_SHA384} {
		s, _ := suiteOf(id)
		var h half
		if err := h.start(s, make([]byte, s.hash().Size())); err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{}
		for range 3 {
			for range 1000 {
				seen[string(h.number())] = true
			}
			if err := h.update(); err != nil {
				t.Fatal(err)
			}
		}
		if len(seen) != 3000 {
			t.Errorf("%d different nonces of 3000", len(seen))
		}
	}
}

// Everything that a peer with the right keys can get wrong ends the connection
// with the alert that RFC 8446 asks for, which reaches the peer.
func TestViolations(t *testing.T) {
	t.Parallel()
	update := []byte{msgKeyUpdate, 0, 0, 1, 0}
	type records func(l *layer) [][]byte
	one := func(kind byte, p ...byte) records {
		return func(l *layer) [][]byte { return [][]byte{l.small(kind, p)} }
	}
	for name, c := range map[string]struct {
		send  records
		alert tls.AlertError
	}{
		"unknown content type":      {one(99, 1), alertUnexpected},
		"no content type":           {one(0), alertUnexpected},
		"change_cipher_spec inside": {one(20, 1), alertUnexpected},
		"short alert":               {one(typeAlert, 1), alertDecode},
		"empty handshake record":    {one(typeHandshake), alertUnexpected},
		"KeyUpdate of 2":            {one(typeHandshake, msgKeyUpdate, 0, 0, 1, 2), alertDecode},
		"KeyUpdate without body":    {one(typeHandshake, msgKeyUpdate, 0, 0, 0), alertDecode},
		"bytes behind KeyUpdate":    {one(typeHandshake, append(bytes.Clone(update), 4)...), alertUnexpected},
		"ticket for a server":       {one(typeHandshake, msgNewSessionTicket, 0, 0, 0), alertUnexpected},
		"ClientHello":               {one(typeHandshake, 1, 0, 0, 0), alertUnexpected},
		"huge message":              {one(typeHandshake, msgNewSessionTicket, 9, 9, 9), alertDecode},
		"data inside a message": {func(l *layer) [][]byte {
			return [][]byte{l.small(typeHandshake, update[:3]), l.small(typeApplication, []byte("x"))}
		}, alertUnexpected},
		"nothing but empty records": {func(l *layer) (out [][]byte) {
			for range maxUseless + 1 {
				out = append(out, l.small(typeApplication, nil))
			}
			return out
		}, alertUnexpected},
		"plaintext record": {func(l *layer) [][]byte { return [][]byte{{20, 3, 3, 0, 1, 1}} }, alertUnexpected},
		"too large for TLS 1.3": {func(l *layer) [][]byte {
			return [][]byte{append([]byte{23, 3, 3, 0x41, 1}, make([]byte, 0x4101)...)}
		}, alertOverflow},
		"too large for anything": {func(l *layer) [][]byte { return [][]byte{{23, 3, 3, 0xff, 0xff}} }, alertOverflow},
		"plaintext too large": {func(l *layer) [][]byte {
			return [][]byte{l.small(typeApplication, make([]byte, MaxPlain+1))}
		}, alertOverflow},
		"too short for a tag": {func(l *layer) [][]byte { return [][]byte{{23, 3, 3, 0, 2, 1, 1}} }, alertBadMAC},
		"bit flipped": {func(l *layer) [][]byte {
			rec := l.small(typeApplication, []byte("hello"))
			rec[7] ^= 4
			return [][]byte{rec}
		}, alertBadMAC},
		"record twice": {func(l *layer) [][]byte {
			rec := l.small(typeApplication, []byte("hello"))
			return [][]byte{rec, rec}
		}, alertBadMAC},
		"record left out": {func(l *layer) [][]byte {
			l.small(typeApplication, []byte("hello"))
			return [][]byte{l.small(typeApplication, []byte("hello"))}
		}, alertBadMAC},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client, server := ours(t)
			if _, err := client.t.conn.Write(bytes.Join(c.send(client.layer), nil)); err != nil {
				t.Fatal(err)
			}
			_, err := io.Copy(io.Discard, struct{ io.Reader }{server})
			if op, ok := errors.AsType[*net.OpError](err); !ok || op.Op != "local error" || op.Err != c.alert {
				t.Errorf("server: %v, want %v", err, c.alert)
			}
			if _, err := server.Write([]byte("x")); err == nil {
				t.Error("written after a fatal alert")
			}
			_, err = client.Read(make([]byte, 1))
			if op, ok := errors.AsType[*net.OpError](err); !ok || op.Op != "remote error" || op.Err != c.alert {
				t.Errorf("client: %v, want %v", err, c.alert)
			}
		})
	}
}

// What is allowed besides data passes unnoticed: padding, empty records now and
// then, user_canceled, and messages in pieces.
func TestOddButAllowed(t *testing.T) {
	t.Parallel()
	client, server := ours(t)
	l := server.layer
	ticket := append([]byte{msgNewSessionTicket, 0, 1, 0}, make([]byte, 256)...)
	list := [][]byte{
		l.small(0, append([]byte("padded"), typeApplication, 0, 0, 0, 0)),
		l.small(0, append([]byte{typeApplication}, make([]byte, MaxPlain-1)...)),
		l.small(typeAlert, []byte{1, alertUserCanceled}),
		l.small(typeHandshake, ticket[:2]),
		l.small(typeHandshake, ticket[2:100]),
		l.small(typeHandshake, append(bytes.Clone(ticket[100:]), ticket...)),
		l.small(typeApplication, []byte(" plain")),
	}
	if _, err := server.t.conn.Write(bytes.Join(list, nil)); err != nil {
		t.Fatal(err)
	}
	_ = server.CloseWrite()
	got, err := io.ReadAll(client)
	if err != nil || string(got) != "padded plain" {
		t.Errorf("%q, %v", got, err)
	}
	if n := client.Counts().Tickets; n != 2 {
		t.Errorf("%d tickets", n)
	}
}

// A reader that has to send an alert does not wait for a writer that is stuck.
func TestAlertDoesNotWait(t *testing.T) {
	t.Parallel()
	client, server := ours(t)
	stuck := make(chan error, 1)
	go func() {
		for {
			if _, err := server.Write(make([]byte, 1<<20)); err != nil {
				stuck <- err
				return
			}
		}
	}()
	hbonetest.Until(t, "the writer to be stuck", func() bool { return hbonetest.Goroutines("poll.(*FD).Write") > 0 })
	if _, err := client.t.conn.Write([]byte{20, 3, 3, 0, 1, 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Read(make([]byte, 1)); err == nil {
		t.Error("read a plaintext record")
	}
	_ = server.Close()
	<-stuck
}

// Bulk costs no allocations.
func TestNoAllocations(t *testing.T) {
	client, server := ours(t)
	run := make([]byte, RunLength(4*MaxPlain))
	runs := [][]byte{run, make([]byte, 100)}
	want := 4*MaxPlain + 100 - HeaderRoom - TailRoom
	var list [][]byte
	n := testing.AllocsPerRun(50, func() {
		if err := client.WriteRecords(runs); err != nil {
			t.Fatal(err)
		}
		for got := 0; got < want; {
			var err error
			if list, err = server.Records(list[:0]); err != nil {
				t.Fatal(err)
			}
			for _, p := range list {
				got += len(p)
			}
		}
	})
	if n > 2 { // the race detector and pools that the collector emptied add a few
		t.Errorf("%v allocations a batch", n)
	}
}

// Append and RunLength agree on where things lie.
func TestLayout(t *testing.T) {
	t.Parallel()
	for _, size := range []int{0, 1, 100, MaxPlain - 1, MaxPlain, MaxPlain + 1, 3*MaxPlain + 5} {
		msg := make([]byte, size)
		_, _ = rand.Read(msg)
		buf := make([]byte, RunLength(size))
		w := 0
		for n := 1; w < size; n = n*5%9001 + 1 {
			took := Append(buf, w, msg[w:min(size, w+n)])
			if took != min(size-w, n) {
				t.Fatalf("took %d of %d at %d of %d", took, n, w, size)
			}
			w += took
		}
		if Append(buf, w, []byte("x")) != 0 && size%MaxPlain != 0 {
			t.Errorf("%d: more than there is room for", size)
		}
		var got []byte
		for run := buf; len(run) > 0; {
			n := min(len(run), FullRecord)
			got = append(got, run[HeaderRoom:n-TailRoom]...)
			run = run[n:]
		}
		if !bytes.Equal(got, msg) {
			t.Errorf("%d bytes laid out wrongly", size)
		}
	}
}

// Whatever a peer with the right keys sends, in records of whatever content type,
// the parser neither panics nor keeps more than a message.
func FuzzRecords(f *testing.F) {
	f.Add([]byte{typeHandshake, 5, msgKeyUpdate, 0, 0, 1, 1, typeApplication, 2, 'h', 'i'}, true)
	f.Add([]byte{typeAlert, 2, 1, 0}, false)
	f.Add([]byte{typeHandshake, 3, msgNewSessionTicket, 0, 0, typeHandshake, 2, 1, 9}, true)
	f.Fuzz(func(t *testing.T, in []byte, client bool) {
		s, _ := suiteOf(tls.TLS_AES_128_GCM_SHA256)
		var out half
		l := &layer{client: client}
		if err := errors.Join(out.start(s, make([]byte, 32)), l.in.start(s, make([]byte, 32))); err != nil {
			t.Fatal(err)
		}
		for len(in) >= 2 {
			kind, n := in[0], min(int(in[1]), len(in)-2)
			rec := make([]byte, HeaderRoom+n+TailRoom)
			copy(rec[HeaderRoom:], in[2:2+n])
			in = in[2+n:]
			out.seal(rec, kind)
			before := l.counts.updatesReceived.Load()
			p, err := l.read(rec)
			if err != nil {
				return
			}
			if kind == typeApplication && !bytes.Equal(p, rec[HeaderRoom:HeaderRoom+n]) {
				t.Fatal("data changed")
			}
			if len(l.partial) > maxPartial {
				t.Fatalf("%d bytes kept", len(l.partial))
			}
			if l.counts.updatesReceived.Load() > before {
				if err := out.update(); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}

// FuzzCiphertext feeds records that were never sealed.
func FuzzCiphertext(f *testing.F) {
	f.Add([]byte{23, 3, 3, 0, 17, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17})
	f.Fuzz(func(t *testing.T, rec []byte) {
		if len(rec) < HeaderRoom {
			return
		}
		s, _ := suiteOf(tls.TLS_AES_256_GCM_SHA384)
		var l layer
		if err := l.in.start(s, make([]byte, 48)); err != nil {
			t.Fatal(err)
		}
		if _, err := l.read(rec); err == nil {
			t.Error("opened a record that nobody sealed")
		}
	})
}

// A socket that ends without close_notify has been cut, and says so, though it ends
// between two records; in TLS 1.2 as well.
func TestTruncation(t *testing.T) {
	t.Parallel()
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		ca := hbonetest.NewCA(t)
		a, b := hbonetest.TCPPair(t)
		cfg := ca.Client(t, clientID, serverID)
		cfg.MinVersion, cfg.MaxVersion = version, version
		peer := tls.Client(b, cfg)
		shook := make(chan error, 1)
		go func() { shook <- peer.Handshake() }()
		srv := ca.Server(t, serverID)
		srv.MinVersion = tls.VersionTLS12
		c, err := Server(context.Background(), a, srv)
		if err := errors.Join(err, <-shook); err != nil {
			t.Fatal(err)
		}
		_, _ = peer.Write([]byte("half of it"))
		_ = b.CloseWrite()
		got, err := io.ReadAll(c)
		if string(got) != "half of it" || err != io.ErrUnexpectedEOF {
			t.Errorf("TLS %x: %q, %v", version, got, err)
		}
	}
}

// After close_notify nothing is written, though the socket would still take it.
func TestNothingAfterCloseNotify(t *testing.T) {
	t.Parallel()
	client, _ := ours(t)
	for range 2 {
		if err := client.closeNotify(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := client.Write([]byte("late")); !errors.Is(err, errShut) {
		t.Errorf("written: %v", err)
	}
}

// A write that failed may have sent part of a record: no other may follow it.
func TestNothingAfterFailedWrite(t *testing.T) {
	t.Parallel()
	client, _ := ours(t)
	_ = client.SetWriteDeadline(time.Unix(1, 0))
	if _, err := client.Write([]byte("late")); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("written: %v", err)
	}
	_ = client.SetWriteDeadline(time.Time{})
	if _, err := client.Write([]byte("later")); err == nil {
		t.Error("written after a failure")
	}
}

// No session is ever resumed, whatever the configuration says: a ticket outlives
// what the peer has proved.
func TestNoTickets(t *testing.T) {
	t.Parallel()
	ca := hbonetest.NewCA(t)
	a, b := hbonetest.TCPPair(t)
	cfg := ca.Server(t, serverID)
	cfg.SessionTicketsDisabled = false
	go func() {
		if s, err := Server(context.Background(), b, cfg); err == nil {
			_, _ = s.Write([]byte("x"))
		}
	}()
	asks := ca.Client(t, clientID, serverID)
	asks.SessionTicketsDisabled = false
	asks.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	client := tls.Client(a, asks)
	if _, err := client.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if _, got := asks.ClientSessionCache.Get(a.RemoteAddr().String()); got {
		t.Error("a session ticket was sent")
	}
}
