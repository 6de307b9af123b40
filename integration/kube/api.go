package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

// client talks to the cluster's API server as its administrator: the few calls that
// starting and testing need. It is safe for concurrent use.
type client struct{ http *http.Client }

func newClient(l layout) (*client, error) {
	raw, err := os.ReadFile(l.kubeconfig("admin"))
	if err != nil {
		return nil, err
	}
	var config struct {
		Clusters []struct {
			Cluster struct {
				CA []byte `json:"certificate-authority-data"`
			} `json:"cluster"`
		} `json:"clusters"`
		Users []struct {
			User struct {
				Cert []byte `json:"client-certificate-data"`
				Key  []byte `json:"client-key-data"`
			} `json:"user"`
		} `json:"users"`
	}
	if err := json.Unmarshal(raw, &config); err != nil {
		return nil, err
	}
	user := config.Users[0].User
	cert, err := tls.X509KeyPair(user.Cert, user.Key)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(config.Clusters[0].Cluster.CA)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{cert}}, ForceAttemptHTTP2: true}
	return &client{&http.Client{Transport: transport, Timeout: 20 * time.Second}}, nil
}

// statusError is an answer other than 2xx.
type statusError struct {
	code int
	text string
}

func (e *statusError) Error() string { return fmt.Sprintf("%d: %s", e.code, e.text) }

func (c *client) do(ctx context.Context, method, path, contentType string, body []byte, answer any) error {
	req, err := http.NewRequestWithContext(ctx, method, "https://"+controlIP+":6443"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("%s %s: %w", method, path, &statusError{resp.StatusCode, string(raw)})
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(raw, answer)
}

func (c *client) get(ctx context.Context, path string, answer any) error {
	return c.do(ctx, http.MethodGet, path, "application/json", nil, answer)
}

// resources are the kinds that apply knows: their path, and whether they are in a
// namespace.
var resources = map[string]struct {
	name       string
	namespaced bool
}{
	"Namespace": {"namespaces", false}, "ClusterRole": {"clusterroles", false}, "ClusterRoleBinding": {"clusterrolebindings", false},
	"CustomResourceDefinition": {"customresourcedefinitions", false}, "ServiceAccount": {"serviceaccounts", true},
	"ConfigMap": {"configmaps", true}, "Secret": {"secrets", true}, "Service": {"services", true}, "Pod": {"pods", true}, "Job": {"jobs", true},
	"Deployment": {"deployments", true}, "StatefulSet": {"statefulsets", true}, "ValidatingWebhookConfiguration": {"validatingwebhookconfigurations", false}, "PeerAuthentication": {"peerauthentications", true},
	"AuthorizationPolicy": {"authorizationpolicies", true}, "Gateway": {"gateways", true}, "EndpointSlice": {"endpointslices", true}}

// apply makes the objects of some YAML as they are written there.
func (c *client) apply(ctx context.Context, documents string) error {
	for doc := range strings.SplitSeq("\n"+documents, "\n---") {
		var o struct {
			APIVersion, Kind string
			Metadata         struct{ Name, Namespace string }
		}
		if err := yaml.Unmarshal([]byte(doc), &o); err != nil {
			return err
		}
		if o.Kind == "" {
			continue // comments
		}
		r, ok := resources[o.Kind]
		if !ok {
			return fmt.Errorf("apply: kind %q is not known", o.Kind)
		}
		path := "/apis/" + o.APIVersion
		if !strings.Contains(o.APIVersion, "/") {
			path = "/api/" + o.APIVersion
		}
		if r.namespaced {
			path += "/namespaces/" + o.Metadata.Namespace
		}
		path += "/" + r.name + "/" + o.Metadata.Name + "?fieldManager=kube&force=true"
		if err := c.do(ctx, http.MethodPatch, path, "application/apply-patch+yaml", []byte(doc), nil); err != nil {
			return fmt.Errorf("apply %s %s: %w", o.Kind, o.Metadata.Name, err)
		}
	}
	return nil
}

func (c *client) nodeReady(ctx context.Context, name string) error {
	var node struct {
		Status struct {
			Conditions []struct{ Type, Status, Message string }
		}
	}
	if err := c.get(ctx, "/api/v1/nodes/"+url.PathEscape(name), &node); err != nil {
		return err
	}
	for _, condition := range node.Status.Conditions {
		if condition.Type == "Ready" && condition.Status == "True" {
			return nil
		} else if condition.Type == "Ready" {
			return errors.New(condition.Message)
		}
	}
	return errors.New("no condition Ready yet")
}
