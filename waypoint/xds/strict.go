package xds

import (
	"errors"
	"fmt"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// implemented lists, message by message, the fields that this waypoint acts on.
// It is never written after start-up.
var implemented = implementedFields(map[string]string{
	"culvert.waypoint.v1.Destination":    "service workload",
	"culvert.waypoint.v1.Service":        "namespace hostname port addresses protocol route_config cluster http_filters network_filters route_tables",
	"culvert.waypoint.v1.Workload":       "uid addresses http_filters network_filters",
	"culvert.waypoint.v1.NetworkAddress": "network address",
	"culvert.waypoint.v1.RouteTable":     "source_namespaces route_config",

	"envoy.config.route.v3.RouteConfiguration": "name virtual_hosts request_headers_to_add request_headers_to_remove response_headers_to_add " +
		"response_headers_to_remove ignore_port_in_host_matching validate_clusters",
	"envoy.config.route.v3.VirtualHost": "name domains routes request_headers_to_add request_headers_to_remove response_headers_to_add " +
		"response_headers_to_remove metadata",
	"envoy.config.route.v3.Route": "name match route redirect direct_response metadata decorator stat_prefix request_headers_to_add " +
		"request_headers_to_remove response_headers_to_add response_headers_to_remove",
	"envoy.config.route.v3.Decorator":             "operation propagate",
	"envoy.config.route.v3.RouteMatch":            "prefix path path_separated_prefix safe_regex case_sensitive headers query_parameters",
	"envoy.config.route.v3.HeaderMatcher":         "name string_match present_match invert_match treat_missing_header_as_empty",
	"envoy.config.route.v3.QueryParameterMatcher": "name string_match present_match",
	"envoy.config.route.v3.RouteAction": "cluster weighted_clusters timeout prefix_rewrite regex_rewrite host_rewrite_literal " +
		"cluster_not_found_response_code retry_policy request_mirror_policies",
	"envoy.config.route.v3.RetryPolicy":                     "retry_on num_retries per_try_timeout retriable_status_codes retry_back_off",
	"envoy.config.route.v3.RetryPolicy.RetryBackOff":        "base_interval",
	"envoy.config.route.v3.RouteAction.RequestMirrorPolicy": "cluster runtime_fraction",
	"envoy.config.core.v3.RuntimeFractionalPercent":         "default_value",
	"envoy.type.v3.FractionalPercent":                       "numerator denominator",
	"envoy.config.route.v3.WeightedCluster":                 "clusters total_weight",
	"envoy.config.route.v3.WeightedCluster.ClusterWeight": "name weight request_headers_to_add request_headers_to_remove response_headers_to_add " +
		"response_headers_to_remove",
	"envoy.config.route.v3.RedirectAction":                                   "https_redirect scheme_redirect host_redirect port_redirect path_redirect prefix_rewrite response_code strip_query",
	"envoy.config.route.v3.DirectResponseAction":                             "status body",
	"envoy.config.core.v3.DataSource":                                        "inline_string inline_bytes",
	"envoy.config.core.v3.HeaderValueOption":                                 "header append_action",
	"envoy.config.core.v3.HeaderValue":                                       "key value raw_value",
	"envoy.config.core.v3.Metadata":                                          "filter_metadata",
	"envoy.config.core.v3.CidrRange":                                         "address_prefix prefix_len",
	"envoy.config.core.v3.ConfigSource":                                      "ads self resource_api_version initial_fetch_timeout",
	"envoy.config.core.v3.AggregatedConfigSource":                            "",
	"envoy.type.matcher.v3.StringMatcher":                                    "exact prefix suffix safe_regex contains ignore_case",
	"envoy.type.matcher.v3.RegexMatcher":                                     "google_re2 regex",
	"envoy.type.matcher.v3.RegexMatcher.GoogleRE2":                           "",
	"envoy.type.matcher.v3.RegexMatchAndSubstitute":                          "pattern substitution",
	"envoy.type.matcher.v3.PathMatcher":                                      "path",
	"envoy.type.matcher.v3.FilterStateMatcher":                               "key string_match",
	"envoy.config.cluster.v3.Cluster":                                        "name alt_stat_name type eds_cluster_config connect_timeout lb_policy metadata",
	"envoy.config.cluster.v3.Cluster.EdsClusterConfig":                       "eds_config service_name",
	"envoy.config.listener.v3.Filter":                                        "name typed_config",
	"envoy.config.core.v3.TypedExtensionConfig":                              "name typed_config",
	"envoy.type.v3.Int32Range":                                               "start end",
	"envoy.config.rbac.v3.RBAC":                                              "action policies",
	"envoy.config.rbac.v3.Policy":                                            "permissions principals",
	"envoy.config.rbac.v3.Permission":                                        "and_rules or_rules any header url_path destination_ip destination_port destination_port_range not_rule uri_template",
	"envoy.config.rbac.v3.Permission.Set":                                    "rules",
	"envoy.config.rbac.v3.Principal":                                         "and_ids or_ids any authenticated direct_remote_ip header url_path filter_state not_id",
	"envoy.config.rbac.v3.Principal.Set":                                     "ids",
	"envoy.config.rbac.v3.Principal.Authenticated":                           "principal_name",
	"envoy.extensions.filters.http.rbac.v3.RBAC":                             "rules rules_stat_prefix shadow_rules shadow_rules_stat_prefix",
	"envoy.extensions.filters.network.rbac.v3.RBAC":                          "rules shadow_rules shadow_rules_stat_prefix stat_prefix",
	"envoy.extensions.filters.http.router.v3.Router":                         "",
	"envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig":     "path_template",
	"envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter": "name typed_config",
})

func implementedFields(table map[string]string) map[protoreflect.FullName]bool {
	out := make(map[protoreflect.FullName]bool)
	for message, fields := range table {
		for _, f := range strings.Fields(fields) {
			out[protoreflect.FullName(message+"."+f)] = true
		}
	}
	return out
}

// strict refuses a message in which a field is set that is not implemented, at
// any depth. The error begins with the field's path.
func strict(m protoreflect.Message, path string) (err error) {
	if strings.HasPrefix(string(m.Descriptor().FullName()), "google.protobuf.") {
		return nil
	}
	if len(m.GetUnknown()) > 0 {
		return fmt.Errorf("%s: unknown field of %s", orRoot(path), m.Descriptor().FullName())
	}
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		p := join(path, string(fd.Name()))
		if !implemented[fd.FullName()] {
			err = fmt.Errorf("%s: not supported", p)
		} else {
			err = strictField(fd, v, p)
		}
		return err == nil
	})
	return err
}

func strictField(fd protoreflect.FieldDescriptor, v protoreflect.Value, path string) (err error) {
	switch {
	case fd.IsMap():
		if fd.MapValue().Message() == nil {
			return nil
		}
		v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
			err = strict(v.Message(), fmt.Sprintf("%s[%q]", path, k.String()))
			return err == nil
		})
	case fd.Message() == nil:
	case fd.IsList():
		for i := 0; i < v.List().Len() && err == nil; i++ {
			err = strict(v.List().Get(i).Message(), fmt.Sprintf("%s[%d]", path, i))
		}
	default:
		err = strict(v.Message(), path)
	}
	return err
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

func orRoot(path string) string {
	if path == "" {
		return "resource"
	}
	return path
}

// fieldError is what is wrong with the field at a path.
type fieldError struct {
	path string
	err  error
}

func (e *fieldError) Error() string { return e.path + ": " + e.err.Error() }
func (e *fieldError) Unwrap() error { return e.err }

// at puts where an error is in front of it; paths inside one another are joined.
func at(path string, err error) error {
	var inner *fieldError
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &inner):
		return &fieldError{path, err}
	case strings.HasPrefix(inner.path, "["):
		return &fieldError{path + inner.path, inner.err}
	}
	return &fieldError{path + "." + inner.path, inner.err}
}
