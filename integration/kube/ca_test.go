//go:build kube

package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/culvert-mesh/culvert/pkg/wire/ca"
)

// plane is a replica of a control plane of its own, beside the mesh's: a process of
// this machine, with its Secrets and its Lease in a namespace of the test.
type plane struct {
	name, xds, ready string
	log              string
	cmd              *exec.Cmd
	ended            chan error
}

// freeAddress returns an address of loopback that nobody listens on.
func freeAddress(t *testing.T) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	return lis.Addr().String()
}

func startPlane(t *testing.T, namespace, name string) *plane {
	t.Helper()
	p := &plane{name: name, xds: freeAddress(t), ready: freeAddress(t), log: filepath.Join(t.TempDir(), name+".log"), ended: make(chan error, 1)}
	log, err := os.Create(p.log)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	p.cmd = exec.Command(binary("controlplane"), "--kube", "--kubeconfig", the.l.kubeconfig("admin"), "--namespace", namespace, "--lease", namespace,
		"--trust-bundle=false", "--gateway-controller=false", "--webhook-listen=", "--xds-listen", p.xds, "--ready-listen", p.ready,
		"--admin-listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--node-account", meshNamespace+"/ztunnel", "--drain", "1s")
	p.cmd.Env = append(os.Environ(), "POD_NAME="+name)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.ended <- p.cmd.Wait() }()
	t.Cleanup(func() {
		p.cmd.Process.Kill()
		<-p.ended
		if t.Failed() {
			text, _ := os.ReadFile(p.log)
			t.Logf("%s:\n%s", name, text)
		}
	})
	return p
}

// stop ends a replica as Kubernetes does.
func (p *plane) stop(t *testing.T) {
	t.Helper()
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-p.ended:
		p.ended <- err
		if err != nil {
			t.Errorf("%s: %v", p.name, err)
		}
	case <-time.After(limit):
		t.Errorf("%s does not end", p.name)
	}
}

// says is nil when a line of the log has all words.
func (p *plane) says(words ...string) error {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err
	}
next:
	for line := range strings.Lines(string(text)) {
		for _, w := range words {
			if !strings.Contains(line, w) {
				continue next
			}
		}
		return nil
	}
	return fmt.Errorf("%s has no line with %q", p.name, words)
}

// ask asks a replica for a certificate of who, trusting roots for its own.
func (p *plane) ask(ctx context.Context, roots []byte, bearer, who string) ([]string, error) {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(roots)
	conn, err := grpc.NewClient(p.xds, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: pool, ServerName: "istiod.replicas.svc"})))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	answer, err := ca.NewIstioCertificateServiceClient(conn).CreateCertificate(metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+bearer),
		&ca.IstioCertificateRequest{ValidityDuration: 3600, Csr: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})),
			Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{ca.ImpersonatedIdentity: structpb.NewStringValue(who)}}})
	return answer.GetCertChain(), err
}

// userCA is an authority that a user made.
type userCA struct {
	key  crypto.Signer
	cert *x509.Certificate
}

func newUserCA(t *testing.T, name string, parent *userCA, key crypto.Signer) *userCA {
	t.Helper()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	if parent == nil {
		parent = &userCA{key, tmpl}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent.cert, key.Public(), parent.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &userCA{key, cert}
}

func ecKey(t *testing.T) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (i *userCA) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.cert.Raw})
}

// plugIn writes Secret cacerts: what signs, the way up, and the roots.
func plugIn(t *testing.T, namespace string, signs *userCA, chain []*userCA, roots ...*userCA) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(signs.key)
	if err != nil {
		t.Fatal(err)
	}
	all := func(list []*userCA) string {
		var out []byte
		for _, i := range list {
			out = append(out, i.pem()...)
		}
		return base64.StdEncoding.EncodeToString(out)
	}
	apply(t, fields{"apiVersion": "v1", "kind": "Secret", "metadata": fields{"name": "cacerts", "namespace": namespace}, "data": fields{
		"ca-cert.pem": all([]*userCA{signs}), "cert-chain.pem": all(chain), "root-cert.pem": all(roots),
		"ca-key.pem": base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
	}})
}

func apply(t *testing.T, objects ...any) {
	t.Helper()
	if err := the.api.apply(t.Context(), documents(objects...)); err != nil {
		t.Fatal(err)
	}
}

// TestReplicas: replicas that start together have one root; whichever is asked
// signs, by the API server's word; what a user plugs in is in force without a
// restart; the leader's end makes another one lead.
func TestReplicas(t *testing.T) {
	s := newSpace(t, "replicas", true)
	s.pods(newPod(s.name, "here", "node1", "pause"))
	bearer, err := the.api.token(t.Context(), meshNamespace, "ztunnel", "ztunnel-node1", "istio-ca")
	if err != nil {
		t.Fatal(err)
	}
	elsewhere, err := the.api.token(t.Context(), meshNamespace, "ztunnel", "ztunnel-node2", "istio-ca")
	if err != nil {
		t.Fatal(err)
	}
	var planes []*plane
	for i := range 3 {
		planes = append(planes, startPlane(t, s.name, fmt.Sprintf("plane-%d", i)))
	}
	const who = "spiffe://cluster.local/ns/replicas/sa/default"
	signed := func(what string, roots []byte, by ...string) {
		t.Helper()
		for _, p := range planes {
			eventually(t, what+": "+p.name+" signs", func() error {
				chain, err := p.ask(t.Context(), roots, bearer, who)
				if err != nil {
					return err
				}
				return verifyChain(chain, roots, who, by)
			})
		}
	}
	var made struct{ Data map[string][]byte }
	eventually(t, "the authority is made", func() error {
		return the.api.get(t.Context(), "/api/v1/namespaces/replicas/secrets/istio-ca-secret", &made)
	})
	signed("self-made", made.Data["root-cert.pem"])
	for _, p := range planes {
		if chain, err := p.ask(t.Context(), made.Data["root-cert.pem"], elsewhere, who); err == nil {
			t.Errorf("%s gave the ztunnel of node2 a certificate of a pod on node1: %d elements", p.name, len(chain))
		}
		eventually(t, p.name+" says why", func() error { return p.says("certificate refused", "no pod of replicas/default on node node2") })
	}

	bits, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	root, next := newUserCA(t, "root", nil, bits), newUserCA(t, "next", nil, ecKey(t))
	middle := newUserCA(t, "middle", root, ecKey(t))
	low := newUserCA(t, "low", middle, ecKey(t))
	plugIn(t, s.name, low, []*userCA{low, middle, root}, root)
	signed("plugged in", root.pem(), "CN=low", "CN=middle")
	plugIn(t, s.name, low, []*userCA{low, middle}, next)
	for _, p := range planes {
		eventually(t, p.name+" refuses what has no way to its root", func() error {
			return p.says("certificate authority refused; the last good one signs on", "secret replicas/cacerts: no way from the signing certificate")
		})
	}
	signed("after a mistake", root.pem(), "CN=low", "CN=middle")
	plugIn(t, s.name, middle, nil, root, next)
	signed("two roots", bytes.Join([][]byte{root.pem(), next.pem()}, nil), "CN=middle")
	plugIn(t, s.name, newUserCA(t, "new", next, ecKey(t)), nil, root, next)
	signed("the new root signs", bytes.Join([][]byte{next.pem(), root.pem()}, nil), "CN=new")

	leader, at := leads(t, s.name, planes), time.Now()
	leader.stop(t)
	planes = without(planes, leader)
	successor := leads(t, s.name, planes)
	t.Logf("%s leads %s after the signal to %s", successor.name, time.Since(at).Round(10*time.Millisecond), leader.name)
	signed("with a replica less", bytes.Join([][]byte{next.pem(), root.pem()}, nil), "CN=new")
}

// leads waits until one of the replicas leads.
func leads(t *testing.T, lease string, planes []*plane) (leader *plane) {
	t.Helper()
	eventually(t, "one replica leads", func() error {
		var l struct {
			Spec struct{ HolderIdentity string }
		}
		if err := the.api.get(t.Context(), "/apis/coordination.k8s.io/v1/namespaces/"+lease+"/leases/"+lease, &l); err != nil {
			return err
		}
		for _, p := range planes {
			if strings.HasPrefix(l.Spec.HolderIdentity, p.name+"_") {
				leader = p
				return p.says("leading")
			}
		}
		return fmt.Errorf("%q leads", l.Spec.HolderIdentity)
	})
	return leader
}

func without(planes []*plane, gone *plane) (out []*plane) {
	for _, p := range planes {
		if p != gone {
			out = append(out, p)
		}
	}
	return out
}

// verifyChain is nil when an answer is a certificate of who, then those of by from
// below, then all of roots, and the first verifies.
func verifyChain(answer []string, roots []byte, who string, by []string) error {
	if len(answer) < 2 || answer[len(answer)-1] != string(roots) {
		return fmt.Errorf("%d elements, the last one is not the roots", len(answer))
	}
	var chain []*x509.Certificate
	above, trusted := x509.NewCertPool(), x509.NewCertPool()
	trusted.AppendCertsFromPEM(roots)
	for _, text := range answer[:len(answer)-1] {
		block, rest := pem.Decode([]byte(text))
		if block == nil || len(bytes.TrimSpace(rest)) > 0 {
			return errors.New("not one certificate in each element")
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return err
		}
		chain = append(chain, cert)
		above.AddCert(cert)
	}
	for i, name := range by {
		if len(chain) != len(by)+1 || chain[i+1].Subject.String() != name {
			return fmt.Errorf("%d certificates above the leaf, want %q", len(chain)-1, by)
		}
	}
	if len(chain[0].URIs) != 1 || chain[0].URIs[0].String() != who {
		return fmt.Errorf("a certificate for %v", chain[0].URIs)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: trusted, Intermediates: above, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return err
}

// TestTrustBundle: the mesh's roots are in every namespace, in a new one at once,
// and are put right.
func TestTrustBundle(t *testing.T) {
	roots, err := os.ReadFile(the.dir("state", "root-cert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	right := func(namespace string) error {
		var m struct{ Data map[string]string }
		if err := the.api.get(t.Context(), "/api/v1/namespaces/"+namespace+"/configmaps/istio-ca-root-cert", &m); err != nil {
			return err
		}
		if m.Data["root-cert.pem"] != string(roots) {
			return fmt.Errorf("%s holds %.60q", namespace, m.Data["root-cert.pem"])
		}
		return nil
	}
	const many = 40
	var names []string
	for i := range many {
		names = append(names, fmt.Sprintf("trust-%d", i))
	}
	t.Cleanup(func() {
		var all sync.WaitGroup
		for _, n := range names {
			all.Go(func() { the.api.remove(context.Background(), "/api/v1/namespaces/"+n) })
		}
		all.Wait()
	})
	for _, n := range names {
		apply(t, fields{"apiVersion": "v1", "kind": "Namespace", "metadata": fields{"name": n}})
	}
	for _, n := range append(names, "default", "kube-system", meshNamespace) {
		eventually(t, "the roots are in "+n, func() error { return right(n) })
	}
	const path = "/api/v1/namespaces/trust-0/configmaps/istio-ca-root-cert"
	if err := the.api.patch(t.Context(), path, `{"data":{"root-cert.pem":"mine"}}`); err != nil {
		t.Fatal(err)
	}
	eventually(t, "they are put right", func() error { return right("trust-0") })
	if err := the.api.remove(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	eventually(t, "they are put back", func() error { return right("trust-0") })
}
