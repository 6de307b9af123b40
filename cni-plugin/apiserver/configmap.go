package apiserver

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
)

// ConfigMap reads a ConfigMap's key as it is now. A volume of it would be a minute or
// two behind, and one that did not exist when the pod began stays empty as long. Its
// methods may be called from any goroutine.
type ConfigMap struct {
	namespace, name, key string
	client               typedcorev1.ConfigMapInterface
}

// NewConfigMap returns a reader that asks nothing yet.
func NewConfigMap(config *rest.Config, namespace, name, key string) (*ConfigMap, error) {
	client, err := typedcorev1.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("kubernetes client: %w", err)
	}
	return &ConfigMap{namespace: namespace, name: name, key: key, client: client.ConfigMaps(namespace)}, nil
}

// Read asks the API server for the content of the key.
func (c *ConfigMap) Read(ctx context.Context) ([]byte, error) {
	m, err := c.client.Get(ctx, c.name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("read ConfigMap %s/%s: %w", c.namespace, c.name, err)
	}
	content, ok := m.Data[c.key]
	if !ok {
		return nil, fmt.Errorf("read ConfigMap %s/%s: it has no key %s", c.namespace, c.name, c.key)
	}
	return []byte(content), nil
}
