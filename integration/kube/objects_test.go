//go:build kube

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"strings"
	"testing"
)

// object is something for the API server.
type object fields

func (o object) spec() fields     { return o["spec"].(fields) }
func (o object) metadata() fields { return o["metadata"].(fields) }

// container is a pod's only container.
func (o object) container() fields { return o.spec()["containers"].([]any)[0].(fields) }

// newPod is a pod of the workload's image on a node.
func newPod(namespace, name, node string, args ...string) object {
	return object{"apiVersion": "v1", "kind": "Pod",
		"metadata": fields{"name": name, "namespace": namespace, "labels": fields{"app": name}},
		"spec": fields{"nodeName": node, "terminationGracePeriodSeconds": 1, "containers": []any{
			fields{"name": "main", "image": imageName("workload"), "imagePullPolicy": "Never", "args": args}}}}
}

// documents is YAML of several objects.
func documents(objects ...any) string {
	var out strings.Builder
	for _, o := range objects {
		raw, err := json.Marshal(o)
		if err != nil {
			panic(err)
		}
		fmt.Fprintf(&out, "%s\n---\n", raw)
	}
	return out.String()
}

// isMissing reports whether an object, or its kind, is not there.
func isMissing(err error) bool {
	var status *statusError
	return errors.As(err, &status) && status.code == http.StatusNotFound
}

// remove deletes an object at once, whatever it does; one that is not there is no error.
func (c *client) remove(ctx context.Context, path string) error {
	err := c.do(ctx, http.MethodDelete, path, "application/json", []byte(`{"gracePeriodSeconds":1,"propagationPolicy":"Background"}`), nil)
	if isMissing(err) {
		return nil
	}
	return err
}

// patch merges into an object.
func (c *client) patch(ctx context.Context, path, merge string) error {
	return c.do(ctx, http.MethodPatch, path, "application/merge-patch+json", []byte(merge), nil)
}

// gone is nil when there is no such object.
func (c *client) gone(ctx context.Context, path string) error {
	err := c.get(ctx, path, nil)
	if isMissing(err) {
		return nil
	}
	if err == nil {
		err = errors.New("it is there still")
	}
	return err
}

// podObject is what tests look at of a pod.
type podObject struct {
	Metadata struct {
		UID         string
		Annotations map[string]string
	}
	Status struct {
		Phase, PodIP string
		Conditions   []struct{ Type, Status, Message string }
		Statuses     []struct {
			RestartCount int
			State        json.RawMessage
		} `json:"containerStatuses"`
	}
}

func (c *client) pod(ctx context.Context, namespace, name string) (p podObject, err error) {
	return p, c.get(ctx, "/api/v1/namespaces/"+namespace+"/pods/"+name, &p)
}

func (c *client) podReady(ctx context.Context, namespace, name string) error {
	p, err := c.pod(ctx, namespace, name)
	if err != nil {
		return err
	}
	for _, condition := range p.Status.Conditions {
		if condition.Type == "Ready" && condition.Status == "True" {
			return nil
		}
	}
	return fmt.Errorf("pod %s/%s is not ready: %s %+v", namespace, name, p.Status.Phase, p.Status.Conditions)
}

// token asks for a token of an account that is bound to a pod.
func (c *client) token(ctx context.Context, namespace, account, pod, audience string) (string, error) {
	p, err := c.pod(ctx, namespace, pod)
	if err != nil {
		return "", err
	}
	spec := fields{"audiences": []string{audience}, "expirationSeconds": 3600}
	if account == "ztunnel" {
		spec["boundObjectRef"] = fields{"kind": "Pod", "apiVersion": "v1", "name": pod, "uid": p.Metadata.UID}
	}
	raw, err := json.Marshal(fields{"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec})
	if err != nil {
		return "", err
	}
	var answer struct{ Status struct{ Token string } }
	err = c.do(ctx, http.MethodPost, "/api/v1/namespaces/"+namespace+"/serviceaccounts/"+account+"/token", "application/json", raw, &answer)
	return answer.Status.Token, err
}

// eventually waits for something.
func eventually(t *testing.T, what string, try func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit) // also when the test is being cleaned up
	defer cancel()
	if err := until(ctx, what, try); err != nil {
		t.Fatalf("%v\n%s", err, the.story())
	}
}

// space is a namespace of a test.
type space struct {
	t    *testing.T
	name string
}

// newSpace makes a namespace, in the mesh or not, that ends with the test.
func newSpace(t *testing.T, name string, meshed bool) *space {
	t.Helper()
	path := "/api/v1/namespaces/" + name
	eventually(t, "the last run's "+name+" is gone", func() error { return the.api.gone(t.Context(), path) })
	labels := fields{}
	if meshed {
		labels[labelMode] = "ambient"
	}
	s := &space{t, name}
	s.apply(fields{"apiVersion": "v1", "kind": "Namespace", "metadata": fields{"name": name, "labels": labels}})
	t.Cleanup(func() {
		if err := the.api.remove(context.Background(), path); err != nil {
			t.Error(err)
		}
	})
	return s
}

// strict has the namespace take nothing but mTLS.
func (s *space) strict() {
	s.t.Helper()
	s.apply(fields{"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
		"metadata": fields{"name": "default", "namespace": s.name}, "spec": fields{"mtls": fields{"mode": "STRICT"}}})
}

// apply makes objects; at first the API server may not be ready for them, since a
// namespace gets its service account, and a definition its resource, a moment later.
func (s *space) apply(objects ...any) {
	s.t.Helper()
	eventually(s.t, "the API server takes it", func() error { return the.api.apply(s.t.Context(), documents(objects...)) })
}

// label sets or takes away the namespace's label.
func (s *space) label(meshed bool) {
	s.t.Helper()
	value := "null"
	if meshed {
		value = `"ambient"`
	}
	if err := the.api.patch(s.t.Context(), "/api/v1/namespaces/"+s.name, `{"metadata":{"labels":{"`+labelMode+`":`+value+`}}}`); err != nil {
		s.t.Fatal(err)
	}
}

// pods makes pods and waits until they are ready.
func (s *space) pods(pods ...object) {
	s.t.Helper()
	for _, p := range pods {
		s.apply(p)
	}
	for _, p := range pods {
		s.ready(p.metadata()["name"].(string))
	}
}

func (s *space) ready(name string) {
	s.t.Helper()
	eventually(s.t, name+" is ready", func() error { return the.api.podReady(s.t.Context(), s.name, name) })
}

// pod is a pod as it is now.
func (s *space) pod(name string) podObject {
	s.t.Helper()
	p, err := the.api.pod(s.t.Context(), s.name, name)
	if err != nil {
		s.t.Fatal(err)
	}
	return p
}

// annotated waits until the pods say that they are, or are not, redirected.
func (s *space) annotated(want string, names ...string) {
	s.t.Helper()
	for _, name := range names {
		eventually(s.t, fmt.Sprintf("%s has annotation %q", name, want), func() error {
			p, err := the.api.pod(s.t.Context(), s.name, name)
			if got := p.Metadata.Annotations[redirects]; err == nil && got != want {
				err = fmt.Errorf("it has %q", got)
			}
			return err
		})
	}
}

// exec runs the workload's program in a pod.
func (s *space) exec(pod string, args ...string) (string, error) {
	return s.kubectl(append([]string{"exec", pod, "--", "/workload"}, args...)...)
}

func (s *space) kubectl(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, the.l.bin("kubectl"), append([]string{"-n", s.name}, args...)...)
	cmd.Env = the.l.environment("KUBECONFIG=" + the.l.kubeconfig("admin"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), err
}

// must is exec that has to work.
func (s *space) must(pod string, args ...string) string {
	s.t.Helper()
	out, err := s.exec(pod, args...)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

// works waits until exec works.
func (s *space) works(pod string, args ...string) {
	s.t.Helper()
	eventually(s.t, pod+" can "+strings.Join(args, " "), func() error { _, err := s.exec(pod, args...); return err })
}

// fails waits until exec does not work any more.
func (s *space) fails(pod string, args ...string) {
	s.t.Helper()
	eventually(s.t, pod+" cannot "+strings.Join(args, " "), func() error {
		if out, err := s.exec(pod, args...); err == nil {
			return fmt.Errorf("it can: %s", out)
		}
		return nil
	})
}

// url is a pod's server.
func (s *space) url(pod string) string { return "http://" + s.pod(pod).Status.PodIP + ":8080/" }
