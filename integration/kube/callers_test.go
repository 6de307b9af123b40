//go:build kube

package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestStatefulSet: each member has a name of its own, and is called by it, from
// within and by one another, under STRICT.
func TestStatefulSet(t *testing.T) {
	s := newSpace(t, "stateful", true)
	s.strict()
	s.apply(fields{"apiVersion": "v1", "kind": "Service", "metadata": fields{"name": "db", "namespace": s.name},
		"spec": fields{"clusterIP": "None", "selector": fields{"app": "db"}, "ports": []any{fields{"port": 8080}}}})
	template := newPod(s.name, "db", "")
	spec := template.spec()
	delete(spec, "nodeName")
	template.container()["readinessProbe"] = fields{"httpGet": fields{"path": "/probe", "port": 8080}, "periodSeconds": 1}
	s.apply(fields{"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": fields{"name": "db", "namespace": s.name}, "spec": fields{
		"serviceName": "db", "replicas": 2, "podManagementPolicy": "Parallel", "selector": fields{"matchLabels": fields{"app": "db"}},
		"template": fields{"metadata": fields{"labels": fields{"app": "db"}}, "spec": spec}}})
	s.pods(newPod(s.name, "client", "node1", "pause"))
	s.ready("db-0")
	s.ready("db-1")
	s.annotated("enabled", "db-0", "db-1")
	for _, from := range []string{"client", "db-0", "db-1"} {
		for _, to := range []string{"db-0", "db-1"} {
			if from == to {
				continue
			}
			eventually(t, from+" calls "+to, func() error {
				out, err := s.exec(from, "get", "http://"+to+".db.stateful.svc.cluster.local:8080/")
				if err == nil && !strings.HasPrefix(out, to+" saw ") {
					err = fmt.Errorf("somebody else answers: %s", out)
				}
				return err
			})
		}
	}
}

// TestLocalTraffic: externalTrafficPolicy: Local keeps the caller's address and the
// caller on the node, with the pod in the mesh.
func TestLocalTraffic(t *testing.T) {
	s := newSpace(t, "local", true)
	s.pods(newPod(s.name, "server", "node2"))
	s.annotated("enabled", "server")
	s.apply(fields{"apiVersion": "v1", "kind": "Service", "metadata": fields{"name": "server", "namespace": s.name}, "spec": fields{
		"type": "NodePort", "externalTrafficPolicy": "Local", "selector": fields{"app": "server"}, "ports": []any{fields{"port": 80, "targetPort": 8080}}}})
	var svc struct {
		Spec struct{ Ports []struct{ NodePort int } }
	}
	if err := the.api.get(t.Context(), "/api/v1/namespaces/local/services/server", &svc); err != nil {
		t.Fatal(err)
	}
	port := svc.Spec.Ports[0].NodePort
	eventually(t, "the node with the pod answers, and the pod sees the caller", func() error {
		resp, err := (&http.Client{Timeout: 10 * time.Second}).Get(fmt.Sprintf("http://%s:%d/", placeOf("node2").ip, port))
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		out, err := io.ReadAll(resp.Body)
		if err == nil && !strings.Contains(string(out), "saw "+bridgeIP+":") {
			err = fmt.Errorf("%s, want it to see %s", out, bridgeIP)
		}
		return err
	})
	if err := fetch(fmt.Sprintf("http://%s:%d/", placeOf("node1").ip, port)); err == nil {
		t.Error("the node without the pod answers")
	}
}

// TestFromHostNetwork: a pod in the node's network is no member of the mesh: it may
// call one under PERMISSIVE and not under STRICT; members call it as anybody.
func TestFromHostNetwork(t *testing.T) {
	s := newSpace(t, "fromhost", true)
	host := newPod(s.name, "host", "node1", "pause")
	host.spec()["hostNetwork"] = true
	s.pods(host, newPod(s.name, "server", "node2"), newPod(s.name, "near", "node1"), newPod(s.name, "client", "node2", "pause"))
	s.annotated("enabled", "server", "near", "client")
	for _, to := range []string{"server", "near"} {
		s.works("host", "get", s.url(to))
	}
	s.works("client", "get", "http://"+placeOf("node1").ip+":15014/healthz") // the agent: it is in the node's network too
	s.strict()
	for _, to := range []string{"server", "near"} {
		s.fails("host", "get", s.url(to))
		s.works("client", "get", s.url(to))
	}
}

// TestWebhook: the API server, which is no member, calls a webhook in a pod of a
// STRICT namespace on the port that is excepted.
func TestWebhook(t *testing.T) {
	s := newSpace(t, "webhook", true)
	s.apply(fields{"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": fields{"name": "hook", "namespace": s.name}, "spec": fields{
		"selector": fields{"matchLabels": fields{"app": "hook"}}, "mtls": fields{"mode": "STRICT"}, "portLevelMtls": fields{"8443": fields{"mode": "PERMISSIVE"}}}})
	cert, key := certificate(t, "hook.webhook.svc")
	s.pods(newPod(s.name, "hook", "node2", "admit", cert, key))
	s.annotated("enabled", "hook")
	s.apply(fields{"apiVersion": "v1", "kind": "Service", "metadata": fields{"name": "hook", "namespace": s.name},
		"spec": fields{"selector": fields{"app": "hook"}, "ports": []any{fields{"port": 443, "targetPort": 8443}}}})
	s.apply(fields{"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration", "metadata": fields{"name": "culvert-test"}, "webhooks": []any{fields{
		"name": "hook.culvert.test", "admissionReviewVersions": []string{"v1"}, "sideEffects": "None", "failurePolicy": "Ignore", "timeoutSeconds": 5,
		"namespaceSelector": fields{"matchLabels": fields{"kubernetes.io/metadata.name": s.name}},
		"rules":             []any{fields{"apiGroups": []string{""}, "apiVersions": []string{"v1"}, "operations": []string{"CREATE"}, "resources": []string{"configmaps"}}},
		"clientConfig":      fields{"caBundle": base64.StdEncoding.EncodeToString([]byte(cert)), "service": fields{"namespace": s.name, "name": "hook", "path": "/"}}}}})
	t.Cleanup(func() {
		the.api.remove(context.Background(), "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/culvert-test")
	})
	n := 0
	eventually(t, "the webhook is asked", func() error {
		n++
		out, err := s.kubectl("create", "configmap", fmt.Sprintf("try-%d", n))
		if err == nil && !strings.Contains(out, "seen by the webhook") {
			err = errors.New(out)
		}
		return err
	})
}

// certificate makes one that signs itself.
func certificate(t *testing.T, name string) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	var c, k bytes.Buffer
	if err := errors.Join(pem.Encode(&c, &pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.Encode(&k, &pem.Block{Type: "PRIVATE KEY", Bytes: raw})); err != nil {
		t.Fatal(err)
	}
	return c.String(), k.String()
}
