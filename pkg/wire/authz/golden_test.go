package authz

import (
	"net/netip"
	"testing"

	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/culvert-mesh/culvert/pkg/wire/wiretest"
)

func addresses(a string, length uint32) []*Address {
	return []*Address{{Address: netip.MustParseAddr(a).AsSlice(), Length: length}}
}

func extension() []*Extension {
	return []*Extension{{Name: "x", Config: &anypb.Any{TypeUrl: "t/y", Value: []byte{1, 2}}}}
}

func fullAuthorization() *Authorization {
	return &Authorization{
		Name: "only-front", Namespace: "shop", Scope: Scope_WORKLOAD_SELECTOR, Action: Action_DENY,
		Rules: []*Rule{{Clauses: []*Clause{{Matches: []*Match{{
			Namespaces:          []*StringMatch{{MatchType: &StringMatch_Exact{Exact: "a"}}},
			NotNamespaces:       []*StringMatch{{MatchType: &StringMatch_Prefix{Prefix: "b"}}},
			Principals:          []*StringMatch{{MatchType: &StringMatch_Suffix{Suffix: "c"}}},
			NotPrincipals:       []*StringMatch{{MatchType: &StringMatch_Presence{Presence: &emptypb.Empty{}}}},
			SourceIps:           addresses("10.0.0.0", 8),
			NotSourceIps:        addresses("10.1.0.0", 16),
			DestinationIps:      addresses("fd00::", 8),
			NotDestinationIps:   addresses("10.9.9.9", 32),
			DestinationPorts:    []uint32{80, 8080},
			NotDestinationPorts: []uint32{443},
			ServiceAccounts:     []*ServiceAccountMatch{{Namespace: "shop", ServiceAccount: "front"}},
			NotServiceAccounts:  []*ServiceAccountMatch{{Namespace: "shop", ServiceAccount: "back"}},
			Extensions:          extension(),
		}}}}}},
		DryRun: true, Extensions: extension(),
	}
}

func TestGolden(t *testing.T) {
	t.Parallel()
	wiretest.Golden(t, "testdata/authorization.hex", fullAuthorization())
	wiretest.Golden(t, "testdata/deny_all.hex", &Authorization{Name: "none", Namespace: "shop", Scope: Scope_NAMESPACE})
	wiretest.Covers(t, File_pkg_wire_authz_authorization_proto, fullAuthorization())
}
