package model

import (
	"github.com/culvert-mesh/culvert/controlplane/compile"
	"github.com/culvert-mesh/culvert/controlplane/source"
)

// Pod returns the UID, the service account and the node of a pod that has not
// ended; ok is false when there is none of that name.
func (m *Model) Pod(namespace, name string) (uid, serviceAccount, node string, ok bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	p, ok := m.objects.get(source.Key{Kind: source.KindPod, Namespace: namespace, Name: name}).(*source.Pod)
	if !ok || ended(p) {
		return "", "", "", false
	}
	return p.UID, p.ServiceAccount, p.Node, true
}

// GatewayAccount returns the service account that a Gateway says its pods run as,
// "" when it says none.
func (m *Model) GatewayAccount(namespace, name string) string {
	m.mu.RLock()
	defer m.mu.RUnlock()
	g, ok := m.objects.get(source.Key{Kind: source.KindGateway, Namespace: namespace, Name: name}).(*source.Gateway)
	if !ok {
		return ""
	}
	return g.Annotations[compile.AnnotationServiceAccount]
}

func ended(p *source.Pod) bool { return p.Phase == "Failed" || p.Phase == "Succeeded" }
