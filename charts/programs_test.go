package charts

import (
	"bufio"
	"errors"
	"io"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	agent "github.com/culvert-mesh/culvert/cni-plugin/app"
	controlplane "github.com/culvert-mesh/culvert/controlplane/app"
	ztunnel "github.com/culvert-mesh/culvert/ztunnel/app"
)

// TestProgramsUnderstand: each program takes the flags and the environment that its
// chart gives it, whatever is switched on.
func TestProgramsUnderstand(t *testing.T) {
	for name, values := range map[string]string{
		"defaults": "{}",
		"much": `
global: {network: net-1, caAddress: "ca.example.org:443", compatibility: {istio: true}, logLevel: "info,xds=debug", logFormat: json}
controlplane: {trustedNodeAccounts: [other/ztunnel], gatewayController: {waypointImage: example.org/waypoint:v1}}
cni: {probeSNAT: true, cniConfFileName: 10-x.conflist, ownConfFileName: 00-culvert.conflist, excludeNamespaces: [a, b]}
ztunnel: {peerCaCrl: revoked, accessLogLevel: "off", caAddress: "https://ca-2.example.org:443"}`,
		"little": "{controlplane: {webhook: {enabled: false}, gatewayController: {enabled: false}}, cni: {prove: false, excludeNamespaces: []}}",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			files, err := render("culvert", parse(t, []byte(values)), false)
			if err != nil {
				t.Fatal(err)
			}
			c := container(t, files, "culvert/charts/controlplane/templates/deployment.yaml")
			args, environ := command(c)
			if _, err := controlplane.ParseConfig(args, environ, io.Discard); err != nil {
				t.Errorf("control plane: %v", err)
			}
			args, environ = command(container(t, files, "culvert/charts/cni/templates/daemonset.yaml"))
			if _, err := agent.ParseConfig(args, environ, io.Discard); err != nil {
				t.Errorf("agent: %v", err)
			}
			_, environ = command(container(t, files, "culvert/charts/ztunnel/templates/daemonset.yaml"))
			if _, err := ztunnel.ParseConfig(environ); err != nil {
				t.Errorf("ztunnel: %v", err)
			}
		})
	}
}

// container is the one of a Deployment or DaemonSet.
func container(t *testing.T, files map[string]string, name string) corev1.Container {
	t.Helper()
	documents := utilyaml.NewYAMLReader(bufio.NewReader(strings.NewReader(files[name])))
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			t.Fatalf("no containers in %s", name)
		}
		if err != nil {
			t.Fatal(err)
		}
		var d appsv1.DaemonSet // where the template is, Deployments are the same
		if err := yaml.Unmarshal(document, &d); err != nil {
			t.Fatal(err)
		}
		if c := d.Spec.Template.Spec.Containers; len(c) > 0 {
			return c[0]
		}
	}
}

// command is what the kubelet would run it with, on some node.
func command(c corev1.Container) (args, environ []string) {
	fields := map[string]string{"spec.nodeName": "node1", "metadata.name": "pod-1", "metadata.namespace": "culvert-system",
		"spec.serviceAccountName": "account", "status.podIP": "192.0.2.1"}
	var replacements []string
	for _, e := range c.Env {
		value := e.Value
		if e.ValueFrom != nil && e.ValueFrom.FieldRef != nil {
			value = fields[e.ValueFrom.FieldRef.FieldPath]
		}
		environ = append(environ, e.Name+"="+value)
		replacements = append(replacements, "$("+e.Name+")", value)
	}
	expand := strings.NewReplacer(replacements...)
	for _, a := range c.Args {
		args = append(args, expand.Replace(a))
	}
	return args, environ
}
