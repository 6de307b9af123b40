package tlsconn

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash"
	"io"
)

// The labels of the application traffic secrets in a key log.
const (
	labelClient = "CLIENT_TRAFFIC_SECRET_0"
	labelServer = "SERVER_TRAFFIC_SECRET_0"
)

// secrets takes the first application traffic secrets from crypto/tls, which
// gives them away only as key log lines. It lives as long as the handshake and
// keeps nothing else; lines go on to the configuration's own writer, if any.
type secrets struct {
	client, server []byte
	tee            io.Writer
}

// Write implements io.Writer for one line: label, client random, secret in hex.
func (s *secrets) Write(line []byte) (int, error) {
	label, rest, _ := bytes.Cut(line, []byte(" "))
	_, secret, _ := bytes.Cut(bytes.TrimSpace(rest), []byte(" "))
	var into *[]byte
	switch string(label) {
	case labelClient:
		into = &s.client
	case labelServer:
		into = &s.server
	}
	if into != nil {
		raw := make([]byte, hex.DecodedLen(len(secret)))
		if _, err := hex.Decode(raw, secret); err != nil {
			return 0, err
		}
		*into = raw
	}
	if s.tee != nil {
		return s.tee.Write(line)
	}
	return len(line), nil
}

// wipe forgets the secrets.
func (s *secrets) wipe() {
	clear(s.client)
	clear(s.server)
	s.client, s.server = nil, nil
}

// suite is a TLS 1.3 cipher suite that we seal and open ourselves.
type suite struct {
	hash   func() hash.Hash
	keyLen int
}

// suiteOf returns the suite of that number; false for those that stay with crypto/tls.
func suiteOf(id uint16) (suite, bool) {
	switch id {
	case tls.TLS_AES_128_GCM_SHA256:
		return suite{sha256.New, 16}, true
	case tls.TLS_AES_256_GCM_SHA384:
		return suite{sha512.New384, 32}, true
	}
	return suite{}, false
}

// expandLabel is HKDF-Expand-Label with an empty context (RFC 8446 §7.1).
func (s suite) expandLabel(secret []byte, label string, length int) ([]byte, error) {
	const prefix = "tls13 "
	info := binary.BigEndian.AppendUint16(nil, uint16(length))
	info = append(info, byte(len(prefix)+len(label)))
	info = append(info, prefix+label...)
	info = append(info, 0)
	return hkdf.Expand(s.hash, secret, string(info), length)
}

// nonceLen is the length of a nonce, ivLen in RFC 8446 §5.3.
const nonceLen = 12

// half is one direction of the record protection (RFC 8446 §5.2, §5.3).
type half struct {
	suite  suite
	aead   cipher.AEAD
	iv     [nonceLen]byte
	nonce  [nonceLen]byte // of the record at hand
	seq    uint64         // of the next record
	secret []byte         // of the next generation of keys
}

// start makes h ready for the generation of keys that secret belongs to. The
// caller's secret may be wiped afterwards.
func (h *half) start(s suite, secret []byte) error {
	h.suite = s
	h.secret = bytes.Clone(secret)
	return h.update()
}

// update goes on to the next generation of keys. Only the secret of the one after
// it is kept.
func (h *half) update() error {
	key, err1 := h.suite.expandLabel(h.secret, "key", h.suite.keyLen)
	iv, err2 := h.suite.expandLabel(h.secret, "iv", nonceLen)
	next, err3 := h.suite.expandLabel(h.secret, "traffic upd", h.suite.hash().Size())
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return err
	}
	if h.aead, err = cipher.NewGCM(block); err != nil {
		return err
	}
	copy(h.iv[:], iv)
	clear(key)
	clear(iv)
	clear(h.secret)
	h.secret, h.seq = next, 0
	return nil
}

// number gives the next record its nonce. It is the only place that counts
// records: a nonce is handed out once in the life of a key.
func (h *half) number() []byte {
	h.nonce = h.iv
	seq := binary.BigEndian.Uint64(h.nonce[nonceLen-8:]) ^ h.seq
	binary.BigEndian.PutUint64(h.nonce[nonceLen-8:], seq)
	h.seq++
	return h.nonce[:]
}

// Content types (RFC 8446 §5.1).
const (
	typeAlert       = 21
	typeHandshake   = 22
	typeApplication = 23
)

// seal protects a record in place: rec is header room, plaintext, tail room.
func (h *half) seal(rec []byte, kind byte) {
	rec[0], rec[1], rec[2] = typeApplication, 3, 3
	binary.BigEndian.PutUint16(rec[3:], uint16(len(rec)-HeaderRoom))
	inner := rec[HeaderRoom : len(rec)-TailRoom+1]
	inner[len(inner)-1] = kind
	h.aead.Seal(inner[:0], h.number(), inner, rec[:HeaderRoom])
}

// open checks a record and returns its content type and plaintext, which takes
// the place of the ciphertext. An error is the alert to send.
func (h *half) open(rec []byte) (kind byte, plain []byte, err error) {
	switch size := len(rec) - HeaderRoom; {
	case rec[0] != typeApplication:
		return 0, nil, alertUnexpected
	case size > MaxPlain+256:
		return 0, nil, alertOverflow
	case size < TailRoom:
		return 0, nil, alertBadMAC
	}
	inner, err := h.aead.Open(rec[HeaderRoom:HeaderRoom], h.number(), rec[HeaderRoom:], rec[:HeaderRoom])
	if err != nil {
		return 0, nil, alertBadMAC
	}
	if len(inner) > MaxPlain+1 {
		return 0, nil, alertOverflow
	}
	for i := len(inner) - 1; i >= 0; i-- { // padding is zeros behind the content type
		if inner[i] != 0 {
			return inner[i], inner[:i], nil
		}
	}
	return 0, nil, alertUnexpected
}

// The alerts that we send (RFC 8446 §6).
const (
	alertUnexpected = tls.AlertError(10)
	alertBadMAC     = tls.AlertError(20)
	alertOverflow   = tls.AlertError(22)
	alertDecode     = tls.AlertError(50)
	alertInternal   = tls.AlertError(80)

	alertCloseNotify  = 0
	alertUserCanceled = 90
)
