package install

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strings"

	"helm.sh/helm/v4/pkg/action"
	chartcommon "helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/kube"
	"helm.sh/helm/v4/pkg/storage/driver"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/version"

	"github.com/culvert-mesh/culvert/cli/laptop"
)

// fieldManager owns the fields that this program writes itself.
const fieldManager = "culvert"

// What the charts render is owned under the helm command's own name: to the API server it
// would be a conflict if one of the two changed what the other had installed.
func init() { kube.ManagedFieldsManager = "helm" }

// helm makes what one operation of Helm works with.
func (i *Installer) helm() (*action.Configuration, error) {
	cfg := action.NewConfiguration()
	cfg.SetLogger(slog.DiscardHandler) // what matters comes back as errors
	if err := cfg.Init(i.Cluster, i.Cluster.Namespace, "secret"); err != nil {
		return nil, explain("helm", err)
	}
	return cfg, nil
}

// likeCluster has templates see the cluster's version and kinds.
func (i *Installer) likeCluster(run *action.Install) error {
	if i.Cluster.cached == nil { // there is no cluster to be like
		v, err := chartcommon.ParseKubeVersion("v" + newest + ".0")
		run.KubeVersion = v
		return err
	}
	v, err := i.Cluster.cached.ServerVersion()
	if err != nil {
		return noCluster(err)
	}
	if run.KubeVersion, err = chartcommon.ParseKubeVersion(v.GitVersion); err != nil {
		return fmt.Errorf("version of the API server: %w", err)
	}
	groups, err := i.Cluster.cached.ServerGroups()
	if err != nil {
		return noCluster(err)
	}
	for _, g := range groups.Groups {
		for _, version := range g.Versions {
			run.APIVersions = append(run.APIVersions, version.GroupVersion)
		}
	}
	return nil
}

// older reports whether version a comes before b. What is no version is not older.
func older(a, b string) bool {
	x, err := version.ParseGeneric(a)
	if err != nil {
		return false
	}
	y, err := version.ParseGeneric(b)
	return err == nil && x.LessThan(y)
}

// schemaField finds the charts and the places of schemas' complaints.
var schemaField = regexp.MustCompile(`(?m)^([a-z-]+):$|- at '([^']*)': (.*)$`)

// explain turns an error of Helm or the API server into one that a person can act on.
func explain(op string, err error) error {
	text := err.Error()
	switch {
	case strings.Contains(text, "don't meet the specifications of the schema"):
		return laptop.WithHint(fmt.Errorf("%s: values are not valid: %s", op, complaints(text)), "culvert install --print-values shows every value with its meaning")
	case errors.Is(err, driver.ErrReleaseExists), strings.Contains(text, "release: already exists"), strings.Contains(text, "another operation (install/upgrade/rollback) is in progress"), strings.Contains(text, "cannot re-use a name"):
		return laptop.WithHint(fmt.Errorf("%s: %w", op, errAtWork), "let it finish; culvert check says what is installed then")
	case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) || strings.Contains(text, "because it is being terminated"):
		return laptop.WithHint(fmt.Errorf("%s: %w", op, err), "the namespace is being deleted: try once more when kubectl get namespaces does not show it any more")
	case apierrors.IsForbidden(err) || strings.Contains(text, "is forbidden"):
		return laptop.WithHint(fmt.Errorf("%s: %w", op, err), "installing needs the rights of cluster-admin: ask for them, or use --context of who has them; culvert check --before lists what is missing")
	case strings.Contains(text, "no matches for kind"):
		return laptop.WithHint(fmt.Errorf("%s: %w", op, err), "a kind is not known to the API server: its definition (CRD) is missing; culvert check --before names it")
	case strings.Contains(text, "invalid ownership metadata"):
		return laptop.WithHint(fmt.Errorf("%s: %w", op, err), "something else has made this object: another mesh, or an install in another namespace; remove that first")
	case apierrors.IsNotFound(err) && strings.Contains(text, "namespaces"):
		return laptop.WithHint(fmt.Errorf("%s: %w", op, err), "the namespace is missing: kubectl create namespace NAME")
	}
	var hint *laptop.HintError
	if errors.As(err, &hint) {
		return err
	}
	return fmt.Errorf("%s: %w", op, err)
}

// complaints are a schema's, in one line: field and what is wrong with it.
func complaints(text string) string {
	var list []string
	part := "" // values of a part go under its name
	for _, m := range schemaField.FindAllStringSubmatch(text, -1) {
		if m[1] != "" {
			part = strings.TrimPrefix(m[1], releaseName)
			continue
		}
		field := strings.ReplaceAll(strings.TrimPrefix(m[2], "/"), "/", ".")
		if !strings.HasPrefix(field, "global") { // which all parts have
			field = strings.Trim(part+"."+field, ".")
		}
		if line := cmp.Or(field, "values") + ": " + m[3]; !slices.Contains(list, line) {
			list = append(list, line)
		}
	}
	if len(list) == 0 {
		return strings.Join(strings.Fields(text), " ")
	}
	return strings.Join(list, "; ")
}
