package authz

import "fmt"

// Malformed lists the addresses of a policy that ToMesh drops, each with its field
// and the reason. A policy that loses some means less than its author wrote: an
// ALLOW lets fewer in, a DENY or a "not" keeps fewer out.
func Malformed(a *Authorization) []string {
	var all []string
	for i, r := range a.GetRules() {
		for j, c := range r.GetClauses() {
			for k, m := range c.GetMatches() {
				at := fmt.Sprintf("rules[%d].clauses[%d].matches[%d]", i, j, k)
				for _, list := range []struct {
					field string
					in    []*Address
				}{
					{"source_ips", m.GetSourceIps()}, {"not_source_ips", m.GetNotSourceIps()},
					{"destination_ips", m.GetDestinationIps()}, {"not_destination_ips", m.GetNotDestinationIps()},
				} {
					for n, address := range list.in {
						if _, err := toPrefix(address); err != nil {
							all = append(all, fmt.Sprintf("%s.%s[%d]: %v", at, list.field, n, err))
						}
					}
				}
			}
		}
	}
	return all
}
