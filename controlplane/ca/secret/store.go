package secret

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"
)

// store takes what a reflector receives of one Secret.
type store struct {
	name string
	set  func(*corev1.Secret) // nil: there is none
}

var _ cache.ReflectorStore = (*store)(nil)

// Add implements cache.ReflectorStore.
func (s *store) Add(obj any) error {
	secret, ok := obj.(*corev1.Secret)
	if !ok {
		return fmt.Errorf("secret %s: got a %T", s.name, obj)
	}
	if secret.Name == s.name {
		s.set(secret)
	}
	return nil
}

// Update implements cache.ReflectorStore.
func (s *store) Update(obj any) error { return s.Add(obj) }

// Delete implements cache.ReflectorStore.
func (s *store) Delete(obj any) error {
	if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = gone.Obj
	}
	if secret, ok := obj.(*corev1.Secret); ok && secret.Name == s.name {
		s.set(nil)
	}
	return nil
}

// Replace implements cache.ReflectorStore.
func (s *store) Replace(list []any, _ string) error {
	for _, obj := range list {
		if secret, ok := obj.(*corev1.Secret); ok && secret.Name == s.name {
			s.set(secret)
			return nil
		}
	}
	s.set(nil)
	return nil
}

// Resync implements cache.ReflectorStore. There is nothing to say again.
func (s *store) Resync() error { return nil }
