package workloads

import (
	"slices"
	"strings"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// internLimit is how many distinct values are remembered. Beyond it all are
// forgotten: what is stored stays valid, later values merely share less.
const internLimit = 1 << 16

// interner lets equal strings and equal lists share memory. Workloads repeat
// their namespace, node, service account, memberships and so on thousands of
// times over.
type interner struct {
	strings  map[string]string
	members  map[string][]mesh.Membership
	policies map[string][]mesh.PolicyName
	key      []byte
}

func newInterner() *interner {
	return &interner{
		strings:  make(map[string]string),
		members:  make(map[string][]mesh.Membership),
		policies: make(map[string][]mesh.PolicyName),
	}
}

func (in *interner) string(s *string) {
	if *s == "" {
		return
	}
	if known, ok := in.strings[*s]; ok {
		*s = known
		return
	}
	if len(in.strings) >= internLimit {
		clear(in.strings)
	}
	c := strings.Clone(*s)
	in.strings[c] = c
	*s = c
}

// workload replaces w's strings and lists by equal ones that others use too.
func (in *interner) workload(w *mesh.Workload) {
	uid := string(w.UID)
	if w.Name != "" && strings.HasSuffix(uid, w.Name) {
		w.Name = uid[len(uid)-len(w.Name):]
	}
	for _, s := range []*string{
		&w.Namespace, &w.Hostname, &w.TrustDomain, &w.ServiceAccount, &w.Node,
		&w.CanonicalName, &w.CanonicalRevision, &w.WorkloadName,
		&w.Locality.Region, &w.Locality.Zone, &w.Locality.Subzone,
		(*string)(&w.Network), (*string)(&w.Cluster),
	} {
		in.string(s)
	}
	w.Services = in.memberships(w.Services)
	w.Policies = in.policyNames(w.Policies)
}

func (in *interner) memberships(list []mesh.Membership) []mesh.Membership {
	if len(list) == 0 {
		return nil
	}
	k := in.key[:0]
	for _, m := range list {
		k = append(append(k, m.Service.Namespace...), '/')
		k = append(append(k, m.Service.Hostname...), 0)
		for _, p := range m.Ports {
			k = append(k, 1, byte(p.Service>>8), byte(p.Service), byte(p.Target>>8), byte(p.Target), byte(p.Protocol))
		}
		k = append(k, 0)
	}
	in.key = k
	if known, ok := in.members[string(k)]; ok {
		return known
	}
	if len(in.members) >= internLimit {
		clear(in.members)
	}
	list = slices.Clip(list)
	for i := range list {
		in.string(&list[i].Service.Namespace)
		in.string(&list[i].Service.Hostname)
		list[i].Ports = slices.Clip(list[i].Ports)
	}
	in.members[string(k)] = list
	return list
}

func (in *interner) policyNames(list []mesh.PolicyName) []mesh.PolicyName {
	if len(list) == 0 {
		return nil
	}
	k := in.key[:0]
	for _, p := range list {
		k = append(append(k, p.Namespace...), '/')
		k = append(append(k, p.Name...), 0)
	}
	in.key = k
	if known, ok := in.policies[string(k)]; ok {
		return known
	}
	if len(in.policies) >= internLimit {
		clear(in.policies)
	}
	list = slices.Clip(list)
	for i := range list {
		in.string(&list[i].Namespace)
		in.string(&list[i].Name)
	}
	in.policies[string(k)] = list
	return list
}
