package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"time"
)

// issuer is a certificate authority of the cluster.
type issuer struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

// subject is who a certificate is for. The API server takes the common name for a
// user and organizations for groups.
type subject struct {
	user, group string
	names       []string // DNS names and addresses at which it serves
}

// life of everything: a cluster for tests is not kept.
const life = 30 * 24 * time.Hour

// writePKI makes the cluster's keys, certificates and kubeconfigs.
func writePKI(l layout) error {
	if err := os.MkdirAll(l.cluster("pki"), 0o700); err != nil {
		return err
	}
	ca, err := newIssuer(l, "ca")
	if err != nil {
		return err
	}
	front, err := newIssuer(l, "front-ca")
	if err != nil {
		return err
	}
	certs := []struct {
		file string
		by   *issuer
		subject
	}{
		{"front-client", front, subject{user: "front-client"}},
		{"kubelet-client", ca, subject{user: "api-server", group: "system:masters"}},
		{"api-server", ca, subject{user: "api-server", names: []string{controlIP, kubernetes, network6 + "2", kubernetes6, "127.0.0.1", "localhost", "kubernetes",
			"kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"}}},
	}
	users := map[string]subject{
		"admin":              {user: "admin", group: "system:masters"},
		"controller-manager": {user: "system:kube-controller-manager"},
		"scheduler":          {user: "system:kube-scheduler"},
		"kube-proxy":         {user: "system:kube-proxy"},
		"flannel":            {user: "flannel"},
	}
	for _, n := range nodes {
		who := subject{user: "system:node:" + n, group: "system:nodes", names: []string{n, placeOf(n).ip, placeOf(n).ip6}}
		certs = append(certs, struct {
			file string
			by   *issuer
			subject
		}{"serving-" + n, ca, who})
		users["kubelet-"+n] = subject{user: who.user, group: who.group}
	}
	for _, c := range certs {
		if _, _, err := c.by.issue(l, c.file, c.subject); err != nil {
			return err
		}
	}
	for file, who := range users {
		if err := ca.kubeconfig(l, file, who); err != nil {
			return err
		}
	}
	return accountKeys(l)
}

func template(user string) *x509.Certificate {
	serial, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120)) // never fails
	return &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: user},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(life),
	}
}

func newIssuer(l layout, name string) (*issuer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := template("ckube " + name)
	t.IsCA, t.BasicConstraintsValid, t.KeyUsage = true, true, x509.KeyUsageCertSign
	i := &issuer{cert: t, key: key}
	i.pem, _, err = i.write(l, name, t, key)
	return i, err
}

// issue writes NAME.crt and NAME.key and returns their content.
func (i *issuer) issue(l layout, name string, who subject) (cert, key []byte, err error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	t := template(who.user)
	if who.group != "" {
		t.Subject.Organization = []string{who.group}
	}
	t.KeyUsage = x509.KeyUsageDigitalSignature
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	for _, n := range who.names {
		if ip := net.ParseIP(n); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, n)
		}
	}
	return i.write(l, name, t, k)
}

func (i *issuer) write(l layout, name string, t *x509.Certificate, key *ecdsa.PrivateKey) (certPEM, keyPEM []byte, err error) {
	der, err := x509.CreateCertificate(rand.Reader, t, i.cert, &key.PublicKey, i.key)
	if err != nil {
		return nil, nil, err
	}
	certPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := os.WriteFile(l.pki(name+".crt"), certPEM, 0o600); err != nil {
		return nil, nil, err
	}
	keyPEM, err = writeKey(l, name, key)
	return certPEM, keyPEM, err
}

func writeKey(l layout, name string, key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	content := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	return content, os.WriteFile(l.pki(name+".key"), content, 0o600)
}

// kubeconfig writes how somebody reaches the API server, as JSON, which is YAML.
func (i *issuer) kubeconfig(l layout, file string, who subject) error {
	cert, key, err := i.issue(l, file, who)
	if err != nil {
		return err
	}
	content, err := json.MarshalIndent(map[string]any{
		"apiVersion": "v1", "kind": "Config", "current-context": "kube",
		"clusters": []any{map[string]any{"name": "kube", "cluster": map[string]any{
			"server": "https://" + controlIP + ":6443", "certificate-authority-data": i.pem}}},
		"users": []any{map[string]any{"name": who.user, "user": map[string]any{
			"client-certificate-data": cert, "client-key-data": key}}},
		"contexts": []any{map[string]any{"name": "kube", "context": map[string]any{"cluster": "kube", "user": who.user}}},
	}, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(l.kubeconfig(file), content, 0o600)
}

// accountKeys makes the key with which tokens of service accounts are signed.
func accountKeys(l layout) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	if _, err := writeKey(l, "accounts", key); err != nil {
		return err
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return fmt.Errorf("key of service accounts: %w", err)
	}
	return os.WriteFile(l.pki("accounts.pub"), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600)
}
