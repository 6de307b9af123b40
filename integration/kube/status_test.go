//go:build kube

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"
)

// kubectl runs kubectl as a user would, and returns what it printed.
func kubectl(ctx context.Context, stdin string, args ...string) (string, error) {
	l := the.l
	cmd := exec.CommandContext(ctx, l.bin("kubectl"), args...)
	cmd.Env = l.environment("KUBECONFIG=" + l.kubeconfig("admin"))
	cmd.Stdin = strings.NewReader(stdin)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, out.String())
	}
	return out.String(), err
}

// kubectlApply applies documents. Kinds that were defined just now may not be known
// to everybody yet.
func kubectlApply(t *testing.T, documents string) (out string) {
	t.Helper()
	var err error
	eventually(t, "kinds are known", func() error {
		if out, err = kubectl(t.Context(), documents, "apply", "-f", "-"); err != nil && strings.Contains(out, "no matches for kind") {
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// statusNamespace makes a namespace for a test.
func statusNamespace(t *testing.T, name string) {
	t.Helper()
	kubectlApply(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: "+name+"}\n")
	t.Cleanup(func() {
		if _, err := kubectl(context.Background(), "", "delete", "namespace", name, "--wait=false"); err != nil {
			t.Error(err)
		}
	})
}

// says waits until what a JSON path of an object selects is what is wanted.
func says(t *testing.T, namespace, object, path, want string) {
	t.Helper()
	eventually(t, object+" says "+want, func() error {
		got, err := kubectl(context.Background(), "", "get", "-n", namespace, object, "-o", "jsonpath="+path)
		if err == nil && got != want {
			err = fmt.Errorf("%s of %s is %q, want %q", path, object, got, want)
		}
		return err
	})
}

// TestStatus: conditions appear in the status of objects, change with what they
// are about, and go with it.
func TestStatus(t *testing.T) {
	const ns = "status"
	statusNamespace(t, ns)
	kubectlApply(t, `
apiVersion: v1
kind: Service
metadata: {name: web, namespace: status, labels: {istio.io/use-waypoint: nowhere}}
spec: {ports: [{port: 80}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: accepted, namespace: status}
spec: {rules: [{from: [{source: {namespaces: [status]}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: targeted, namespace: status}
spec: {targetRefs: [{group: "", kind: Service, name: web}], rules: [{to: [{operation: {methods: [GET]}}]}]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: status}
spec: {mtls: {mode: STRICT}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: route, namespace: status}
spec:
  parentRefs: [{group: "", kind: Service, name: web}, {name: ingress}]
  rules: [{backendRefs: [{name: later, port: 80}]}]
`)
	const reason = `{.status.conditions[?(@.type=="%s")].reason}`
	const routeReason = `{.status.parents[*].conditions[?(@.type=="%s")].reason}`
	says(t, ns, "service/web", fmt.Sprintf(reason, "istio.io/WaypointBound"), "WaypointIsNotReady")
	says(t, ns, "authorizationpolicy/targeted", fmt.Sprintf(reason, "WaypointAccepted"), "AncestorNotBound")
	says(t, ns, "peerauthentication/strict", fmt.Sprintf(reason, "ZtunnelAccepted"), "Accepted")
	says(t, ns, "httproute/route", fmt.Sprintf(routeReason, "ResolvedRefs"), "BackendNotFound")
	says(t, ns, "httproute/route", fmt.Sprintf(routeReason, "Accepted"), "Accepted") // of the service: the ingress is somebody else's
	if _, err := kubectl(t.Context(), "", "wait", "-n", ns, "--for=condition=ZtunnelAccepted", "authorizationpolicy/accepted", "--timeout=10s"); err != nil {
		t.Error(err)
	}

	kubectlApply(t, "apiVersion: v1\nkind: Service\nmetadata: {name: later, namespace: status}\nspec: {ports: [{port: 80}]}\n")
	says(t, ns, "httproute/route", fmt.Sprintf(routeReason, "ResolvedRefs"), "ResolvedRefs")
	if _, err := kubectl(t.Context(), "", "label", "-n", ns, "service", "web", "istio.io/use-waypoint-"); err != nil {
		t.Fatal(err)
	}
	says(t, ns, "service/web", fmt.Sprintf(reason, "istio.io/WaypointBound"), "")
	kubectlApply(t, `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: targeted, namespace: status}
spec: {targetRefs: [{group: "", kind: Service, name: gone}]}
`)
	says(t, ns, "authorizationpolicy/targeted", fmt.Sprintf(reason, "WaypointAccepted"), "TargetNotFound")
	says(t, ns, "authorizationpolicy/targeted", `{.status.conditions[0].observedGeneration}`, "2")
}

// validator is the configuration of the webhook of a control plane that is no pod. As
// the chart's it has no rules: the control plane adds them.
var validator = `
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: culvert-validator}
webhooks:
- name: validation.culvert-mesh.github.io
  clientConfig: {url: "https://` + controlIP + `:15017/validate"}
  sideEffects: None
  admissionReviewVersions: [v1]
  timeoutSeconds: 5
`

// TestValidation: the API server asks our webhook as soon as it can, and refuses
// what it refuses; what was wrong before may be repaired, and what is lossy warns.
func TestValidation(t *testing.T) {
	const ns = "validation"
	statusNamespace(t, ns)
	policy := func(name, operation string) string {
		return "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: " + name + ", namespace: " + ns + "}\n" +
			"spec: {rules: [{to: [{operation: {" + operation + "}}]}]}\n"
	}
	wrong := policy("early", `ports: ["70000"]`)
	kubectlApply(t, wrong) // nobody objects yet
	says(t, ns, "authorizationpolicy/early", "{.status.conditions[0].reason}", "Invalid")

	kubectlApply(t, validator)
	t.Cleanup(func() {
		if _, err := kubectl(context.Background(), "", "delete", "validatingwebhookconfiguration", "culvert-validator"); err != nil {
			t.Error(err)
		}
	})
	says(t, ns, "validatingwebhookconfiguration/culvert-validator", "{.webhooks[0].failurePolicy}", "Fail")

	const words = `denied the request: spec.rules[0].to[0].operation.ports[0]: invalid value: 70000 is not a port (1 to 65535)`
	for _, args := range [][]string{{"apply", "-f", "-"}, {"apply", "--dry-run=server", "-f", "-"}, {"create", "-f", "-"}} {
		out, err := kubectl(t.Context(), policy("wrong", `ports: ["70000"]`), args...)
		var exit *exec.ExitError
		if !errors.As(err, &exit) || !strings.Contains(out, words) {
			t.Errorf("%v: %v, want %q", args, err, words)
		}
	}
	if out, err := kubectl(t.Context(), "", "label", "-n", ns, "authorizationpolicy", "early", "a=b"); err != nil {
		t.Errorf("what was wrong before cannot be labelled: %v %s", err, out)
	}
	if out := kubectlApply(t, policy("lossy", "methods: [GET]")); !strings.Contains(out, "Warning: spec.rules[0].to[0].operation.methods: not supported") {
		t.Errorf("no warning: %s", out)
	}
	kubectlApply(t, policy("early", `ports: ["80"]`))
	says(t, ns, "authorizationpolicy/early", "{.status.conditions[0].reason}", "Accepted")
	if _, err := kubectl(t.Context(), "", "delete", "-n", ns, "authorizationpolicy", "early", "lossy"); err != nil {
		t.Error(err)
	}
}
