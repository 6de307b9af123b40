package kubelet

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/culvert-mesh/culvert/cli/laptop/pod"
)

// environment is the container's, on top of the cluster's. References to fields
// of the pod are resolved; references to other objects are an error that says so.
func (k *Kubelet) environment(ctr corev1.Container) ([]string, error) {
	env := append(slices.Clone(k.cfg.Env), "HOSTNAME="+k.hostname())
	for i, e := range ctr.Env {
		value := e.Value
		if e.ValueFrom != nil {
			if e.ValueFrom.FieldRef == nil {
				return nil, fmt.Errorf("spec.containers[0].env[%d] %s: only fieldRef is supported in valueFrom", i, e.Name)
			}
			var err error
			if value, err = k.field(e.ValueFrom.FieldRef.FieldPath); err != nil {
				return nil, fmt.Errorf("spec.containers[0].env[%d] %s: %w", i, e.Name, err)
			}
		}
		env = append(env, e.Name+"="+expandOne(value, env))
	}
	return env, nil
}

// field returns what the downward API gives for a path.
func (k *Kubelet) field(path string) (string, error) {
	p := k.pod
	fields := map[string]string{
		"metadata.name":           p.Name.Name,
		"metadata.namespace":      p.Name.Namespace,
		"metadata.uid":            p.UID,
		"spec.nodeName":           p.Node,
		"spec.serviceAccountName": p.Object.Spec.ServiceAccountName,
		"status.podIP":            p.Addrs.V4.String(),
		"status.podIPs":           p.Addrs.V4.String() + "," + p.Addrs.V6.String(),
		"status.hostIP":           k.cfg.Node.Name,
	}
	if v, ok := fields[path]; ok {
		return v, nil
	}
	for prefix, m := range map[string]map[string]string{"metadata.labels['": p.Object.Labels, "metadata.annotations['": p.Object.Annotations} {
		if key, ok := strings.CutPrefix(path, prefix); ok && strings.HasSuffix(key, "']") {
			return m[strings.TrimSuffix(key, "']")], nil
		}
	}
	return "", fmt.Errorf("fieldPath %q is not supported", path)
}

// expand replaces $(NAME) in a container's command or args, as Kubernetes does.
func expand(words, env []string) []string {
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = expandOne(w, env)
	}
	return out
}

// expandOne replaces $(NAME) by its value, and leaves unknown names alone; $$ is
// a dollar sign.
func expandOne(s string, env []string) string {
	var b strings.Builder
	for {
		i := strings.IndexByte(s, '$')
		if i < 0 || i+1 >= len(s) {
			b.WriteString(s)
			return b.String()
		}
		b.WriteString(s[:i])
		s = s[i:]
		end := strings.IndexByte(s, ')')
		switch {
		case s[1] == '$':
			b.WriteByte('$')
			s = s[2:]
		case s[1] == '(' && end > 0:
			name := s[2:end]
			if defined(env, name) {
				b.WriteString(pod.Getenv(env, name))
			} else {
				b.WriteString(s[:end+1])
			}
			s = s[end+1:]
		default:
			b.WriteByte('$')
			s = s[1:]
		}
	}
}

func defined(env []string, name string) bool {
	return slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, name+"=") })
}

// imageName is an image without its registry's tag or digest.
func imageName(image string) string {
	name, _, _ := strings.Cut(image, "@")
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		name = name[:i]
	}
	return name
}

func imageNames(images map[string]Image) []string { return slices.Sorted(maps.Keys(images)) }
