package install

import (
	"context"
	"fmt"
	"slices"
	"strings"

	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"github.com/culvert-mesh/culvert/cli/laptop"
)

// Right is something that a person must be allowed to do.
type Right struct{ Verb, Group, Resource, Namespace string }

func (r Right) String() string {
	resource := r.Resource
	if r.Group != "" {
		resource += "." + r.Group
	}
	if r.Namespace != "" {
		return fmt.Sprintf("%s %s in %s", r.Verb, resource, r.Namespace)
	}
	return r.Verb + " " + resource
}

// rightsFor are what applying a manifest needs: to create each kind in it, once.
func (c *Cluster) rightsFor(manifest string) (rights []Right) {
	rights = []Right{{"create", "", "namespaces", ""}, {"create", "apiextensions.k8s.io", "customresourcedefinitions", ""}, {"create", "", "secrets", c.Namespace}}
	for _, doc := range documents(manifest) {
		var o struct {
			metav1.TypeMeta `json:",inline"`
			Metadata        metav1.ObjectMeta `json:"metadata"`
		}
		if yaml.Unmarshal([]byte(doc), &o) != nil || o.Kind == "" {
			continue
		}
		gvk := schema.FromAPIVersionAndKind(o.APIVersion, o.Kind)
		m, err := c.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
		if err != nil {
			continue // its definition is applied first
		}
		r := Right{Verb: "create", Group: m.Resource.Group, Resource: m.Resource.Resource}
		if m.Scope.Name() == "namespace" {
			if r.Namespace = o.Metadata.Namespace; r.Namespace == "" {
				r.Namespace = c.Namespace
			}
		}
		if !slices.Contains(rights, r) {
			rights = append(rights, r)
		}
	}
	return rights
}

// Lacking returns those of rights that the API server does not grant.
func (c *Cluster) Lacking(ctx context.Context, rights []Right) (lacking []Right, err error) {
	for _, r := range rights {
		review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
			ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: r.Verb, Group: r.Group, Resource: r.Resource, Namespace: r.Namespace},
		}}
		answer, err := c.Client.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, review, metav1.CreateOptions{})
		if err != nil {
			return nil, fmt.Errorf("ask for permission to %s: %w", r, err)
		}
		if !answer.Status.Allowed {
			lacking = append(lacking, r)
		}
	}
	return lacking, nil
}

// allowed refuses to begin what would be forbidden half-way.
func (i *Installer) allowed(ctx context.Context, manifest string) error {
	lacking, err := i.Cluster.Lacking(ctx, i.Cluster.rightsFor(manifest))
	if err != nil || len(lacking) == 0 {
		return err
	}
	var list []string
	for _, r := range lacking {
		list = append(list, r.String())
	}
	return laptop.WithHint(fmt.Errorf("permissions are missing: %s", strings.Join(list, "; ")), "installing needs the rights of cluster-admin; --context chooses other credentials")
}
