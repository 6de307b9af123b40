package install

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/culvert-mesh/culvert/pkg/handover"
)

// Facts are what checks go by, all read at about one moment.
type Facts struct {
	Now       time.Time
	CLI       string // this program's version
	Namespace string // of the mesh
	Installed Installed

	Server          string // the API server's version
	Lacking         []Right
	Definitions     []Definition
	Nodes           []corev1.Node
	Namespaces      []corev1.Namespace
	Pods            []corev1.Pod
	Services        []corev1.Service
	Daemons         []appsv1.DaemonSet
	Deployments     []appsv1.Deployment
	Lease           *coordinationv1.Lease
	Roots           map[string]string // trust bundle by namespace
	Authority       Authority
	Webhooks        []Webhook
	NetworkPolicies []networkingv1.NetworkPolicy
	Gateways        []Gateway
	Agents          map[string]Agent // by node
	Events          []corev1.Event   // warnings

	Unread map[string]error // what could not be read, by field of this struct
}

// Definition is a CustomResourceDefinition.
type Definition struct {
	Name    string
	Served  []string // versions
	Bundle  string   // Gateway API's version, from its annotation
	Channel string
	Ready   bool
}

// Authority is the certificate authority's own certificate.
type Authority struct {
	Secret  string // which Secret it is in; empty when there is none
	Expires time.Time
	Error   string // why the Secret's content cannot be used
}

// Webhook is a validating webhook of the mesh.
type Webhook struct {
	Name string
	CA   string // PEM
}

// Gateway is what checks want of one.
type Gateway struct {
	Namespace, Name, Class string
	For                    string // label istio.io/waypoint-for
	Programmed             bool
	Message                string // why it is not
}

// Agent is what a node's agent says of itself.
type Agent struct {
	Ready    bool                    `json:"ready"`
	Ztunnels int                     `json:"ztunnels"`
	Plugin   string                  `json:"plugin"` // why the CNI plugin is not installed
	Pods     []AgentPod              `json:"pods"`
	Proxies  []handover.ClientStatus `json:"proxies"` // ztunnels, also those that drain
	Error    string                  `json:"-"`       // why it could not be asked
}

// AgentPod is a pod as its node's agent sees it.
type AgentPod struct {
	Namespace, Name, State, Error string
	InMesh                        bool
}

// agentPort is where an agent answers, in its pod or on its node.
const agentPort = "15014"

// Collect reads the facts. What cannot be read is noted in Unread and is no error.
func (c *Cluster) Collect(ctx context.Context, version string) *Facts {
	f := &Facts{Now: time.Now(), CLI: version, Namespace: c.Namespace, Roots: map[string]string{}, Agents: map[string]Agent{}, Unread: map[string]error{}}
	var mu sync.Mutex
	var all sync.WaitGroup
	read := func(field string, do func() error) {
		all.Go(func() {
			if err := do(); err != nil {
				mu.Lock()
				f.Unread[field] = err
				mu.Unlock()
			}
		})
	}
	var none metav1.ListOptions
	core, apps := c.Client.CoreV1(), c.Client.AppsV1()
	read("Server", func() (err error) { f.Server, err = c.serverVersion(); return err })
	read("Lacking", func() (err error) { f.Lacking, err = c.Lacking(ctx, installRights(c.Namespace)); return err })
	read("Installed", func() (err error) { f.Installed, err = c.Installed(); return err })
	read("Definitions", func() (err error) { f.Definitions, err = c.definitions(ctx); return err })
	read("Gateways", func() (err error) { f.Gateways, err = c.gateways(ctx); return err })
	read("Nodes", func() error {
		return items(core.Nodes().List(ctx, none))(func(l *corev1.NodeList) { f.Nodes = l.Items })
	})
	read("Namespaces", func() error {
		return items(core.Namespaces().List(ctx, none))(func(l *corev1.NamespaceList) { f.Namespaces = l.Items })
	})
	read("Services", func() error {
		return items(core.Services("").List(ctx, none))(func(l *corev1.ServiceList) { f.Services = l.Items })
	})
	read("Daemons", func() error {
		return items(apps.DaemonSets("").List(ctx, none))(func(l *appsv1.DaemonSetList) { f.Daemons = l.Items })
	})
	read("Deployments", func() error {
		return items(apps.Deployments("").List(ctx, none))(func(l *appsv1.DeploymentList) { f.Deployments = l.Items })
	})
	read("NetworkPolicies", func() error {
		return items(c.Client.NetworkingV1().NetworkPolicies("").List(ctx, none))(func(l *networkingv1.NetworkPolicyList) { f.NetworkPolicies = l.Items })
	})
	read("Events", func() error {
		warnings := metav1.ListOptions{FieldSelector: "type=Warning"}
		return items(core.Events("").List(ctx, warnings))(func(l *corev1.EventList) { f.Events = l.Items })
	})
	read("Roots", func() error {
		bundles := metav1.ListOptions{FieldSelector: "metadata.name=" + trustBundle}
		return items(core.ConfigMaps("").List(ctx, bundles))(func(l *corev1.ConfigMapList) {
			for _, m := range l.Items {
				f.Roots[m.Namespace] = m.Data["root-cert.pem"]
			}
		})
	})
	read("Lease", func() (err error) {
		f.Lease, err = c.Client.CoordinationV1().Leases(c.Namespace).Get(ctx, leaseName, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			f.Lease, err = nil, nil
		}
		return err
	})
	read("Authority", func() (err error) { f.Authority, err = c.authority(ctx); return err })
	read("Webhooks", func() (err error) { f.Webhooks, err = c.webhooks(ctx); return err })
	read("Pods", func() error {
		return items(core.Pods("").List(ctx, none))(func(l *corev1.PodList) { f.Pods = l.Items })
	})
	all.Wait()
	c.askAgents(ctx, f)
	return f
}

// items hands a list on when there is one.
func items[L any](list L, err error) func(func(L)) error {
	return func(use func(L)) error {
		if err == nil {
			use(list)
		}
		return err
	}
}

func (c *Cluster) serverVersion() (string, error) {
	v, err := c.cached.ServerVersion()
	if err != nil {
		return "", err
	}
	return v.GitVersion, nil
}

func (c *Cluster) definitions(ctx context.Context) (all []Definition, err error) {
	list, err := c.list(ctx, definitions)
	for _, u := range list {
		d := Definition{Name: u.GetName(), Ready: hasCondition(&u, "Established")}
		d.Bundle, d.Channel = u.GetAnnotations()["gateway.networking.k8s.io/bundle-version"], u.GetAnnotations()["gateway.networking.k8s.io/channel"]
		versions, _, _ := unstructured.NestedSlice(u.Object, "spec", "versions")
		for _, v := range versions {
			if m, ok := v.(map[string]any); ok && m["served"] == true {
				d.Served = append(d.Served, fmt.Sprint(m["name"]))
			}
		}
		all = append(all, d)
	}
	return all, err
}

func (c *Cluster) gateways(ctx context.Context) (all []Gateway, err error) {
	list, err := c.list(ctx, gateways)
	for _, u := range list {
		all = append(all, gatewayOf(&u))
	}
	return all, err
}

func gatewayOf(u *unstructured.Unstructured) Gateway {
	class, _, _ := unstructured.NestedString(u.Object, "spec", "gatewayClassName")
	g := Gateway{Namespace: u.GetNamespace(), Name: u.GetName(), Class: class, For: u.GetLabels()["istio.io/waypoint-for"], Programmed: hasCondition(u, "Programmed")}
	conditions, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	for _, c := range conditions {
		if m, ok := c.(map[string]any); ok && m["status"] == "False" && g.Message == "" {
			g.Message, _ = m["message"].(string)
		}
	}
	return g
}

// authority reads the certificate of whichever authority is in use.
func (c *Cluster) authority(ctx context.Context) (a Authority, err error) {
	for _, name := range []string{pluggedCA, selfMadeCA} {
		s, err := c.Client.CoreV1().Secrets(c.Namespace).Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return a, err
		}
		a.Secret = name
		a.Expires, a.Error = readAuthority(s.Data)
		return a, nil
	}
	return a, nil
}

// readAuthority is when an authority's certificate ends, or why it cannot sign.
func readAuthority(data map[string][]byte) (expires time.Time, problem string) {
	cert, key := "ca-cert.pem", "ca-key.pem"
	if len(data[cert]) == 0 && len(data["tls.crt"]) > 0 { // as cert-manager writes it
		cert, key = "tls.crt", "tls.key"
	}
	certs, err := certificates(string(data[cert]))
	if err != nil {
		return expires, cert + ": " + err.Error()
	}
	if _, err := tls.X509KeyPair(data[cert], data[key]); err != nil {
		return expires, fmt.Sprintf("%s and %s: %v", cert, key, err)
	}
	return certs[0].NotAfter, ""
}

// certificates reads PEM: at least one.
func certificates(text string) (certs []*x509.Certificate, err error) {
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return nil, errors.New("no certificate in it")
	}
	return certs, nil
}

func (c *Cluster) webhooks(ctx context.Context) (all []Webhook, err error) {
	list, err := c.Client.AdmissionregistrationV1().ValidatingWebhookConfigurations().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	for _, w := range list.Items {
		for _, h := range w.Webhooks {
			if s := h.ClientConfig.Service; s != nil && s.Name == controlName && s.Namespace == c.Namespace {
				all = append(all, Webhook{h.Name, string(h.ClientConfig.CABundle)})
			}
		}
	}
	return all, nil
}

// askAgent asks the agent in a pod, through the API server.
func (c *Cluster) askAgent(ctx context.Context, p corev1.Pod) (a Agent, err error) {
	body, err := c.Client.CoreV1().Pods(p.Namespace).ProxyGet("http", p.Name, agentPort, "/status", nil).DoRaw(ctx)
	if err == nil {
		err = json.Unmarshal(body, &a)
	}
	return a, err
}

// askAgents asks each node's agent.
func (c *Cluster) askAgents(ctx context.Context, f *Facts) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, p := range f.meshPods(agentName) {
		all.Go(func() {
			a, err := c.askAgent(ctx, p)
			if err != nil {
				a.Error = err.Error()
			}
			mu.Lock()
			defer mu.Unlock()
			f.Agents[p.Spec.NodeName] = a
		})
	}
	all.Wait()
}

// meshPods are the running pods of one of the mesh's programs.
func (f *Facts) meshPods(app string) (pods []corev1.Pod) {
	for _, p := range f.Pods {
		if p.Namespace == f.Namespace && p.Labels["app"] == app && p.DeletionTimestamp == nil {
			pods = append(pods, p)
		}
	}
	return pods
}

// imageVersion is the tag of a pod's first container.
func imageVersion(p corev1.Pod) string {
	if len(p.Spec.Containers) == 0 {
		return ""
	}
	image := p.Spec.Containers[0].Image
	image, _, _ = strings.Cut(image, "@")
	if i := strings.LastIndex(image, ":"); i > strings.LastIndex(image, "/") {
		return image[i+1:]
	}
	return ""
}

// installRights are what an install needs, whatever the values.
func installRights(namespace string) []Right {
	return []Right{
		{"create", "", "namespaces", ""},
		{"create", "apiextensions.k8s.io", "customresourcedefinitions", ""},
		{"create", "rbac.authorization.k8s.io", "clusterroles", ""},
		{"create", "rbac.authorization.k8s.io", "clusterrolebindings", ""},
		{"create", "admissionregistration.k8s.io", "validatingwebhookconfigurations", ""},
		{"create", "apps", "daemonsets", namespace},
		{"create", "apps", "deployments", namespace},
		{"create", "", "services", namespace},
		{"create", "", "serviceaccounts", namespace},
		{"create", "", "configmaps", namespace},
		{"create", "", "secrets", namespace},
		{"patch", "", "pods", ""},
		{"create", "batch", "jobs", namespace},
	}
}
