package admission

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	registrationv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/kubernetes/typed/admissionregistration/v1"
	"k8s.io/client-go/rest"
)

// Configuration is the name of the ValidatingWebhookConfiguration.
const Configuration = "culvert-validator"

// fieldManager manages what a Keeper writes.
const fieldManager = "culvert-controlplane"

// Pauses of a Keeper: between looks at a webhook that works, and after one that does not.
const (
	checkEvery = time.Minute
	minRetry   = time.Second
	maxRetry   = 30 * time.Second
)

// rules are what the webhook judges when it is written.
var rules = []registrationv1.RuleWithOperations{
	written("security.istio.io", "*", "authorizationpolicies", "peerauthentications"),
	written("networking.istio.io", "*", "serviceentries", "workloadentries"),
	written("gateway.networking.k8s.io", "v1", "gateways", "httproutes", "grpcroutes"),
}

func written(group, version string, resources ...string) registrationv1.RuleWithOperations {
	namespaced := registrationv1.NamespacedScope
	return registrationv1.RuleWithOperations{
		Operations: []registrationv1.OperationType{registrationv1.Create, registrationv1.Update},
		Rule:       registrationv1.Rule{APIGroups: []string{group}, APIVersions: []string{version}, Resources: resources, Scope: &namespaced},
	}
}

// KeeperConfig configures a Keeper.
type KeeperConfig struct {
	Configurations v1.ValidatingWebhookConfigurationInterface
	Roots          func() []byte               // certificates by which the API server knows the webhook, PEM
	Trial          func(context.Context) error // nil when the API server reaches the webhook
	Policy         string                      // once it is reached: "Fail" ("" too) or "Ignore"
	Log            *slog.Logger
}

// Keeper keeps the webhook's configuration right: what it is asked about, the roots
// that it is known by, and what becomes of objects when it is not reached. That is
// Ignore until it was seen to be reached, and again when it no longer is.
//
// These fields are nobody else's: were they in the chart as well, Helm's rollback would
// have to be forced to overwrite them. A webhook without rules is asked nothing.
//
// Only one replica runs its Keeper.
type Keeper struct {
	cfg     KeeperConfig
	version string // of the configuration that was seen last
}

// NewKeeper returns a Keeper that asks nothing before Run.
func NewKeeper(cfg KeeperConfig) *Keeper {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.Policy = cmp.Or(cfg.Policy, string(registrationv1.Fail))
	return &Keeper{cfg: cfg}
}

// Run keeps the configuration until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	pause, said := minRetry/2, ""
	for {
		reached, err := k.keep(ctx)
		if ctx.Err() != nil {
			return nil
		}
		said = k.say(said, err)
		pause = after(reached, pause)
		if k.wait(ctx, pause); ctx.Err() != nil {
			return nil
		}
	}
}

// after returns the pause after a look that followed another pause.
func after(reached bool, pause time.Duration) time.Duration {
	switch {
	case reached:
		return checkEvery
	case pause == checkEvery:
		return minRetry
	}
	return min(2*pause, maxRetry)
}

// say logs how it stands when that has changed.
func (k *Keeper) say(before string, err error) string {
	now := "ok"
	if err != nil {
		now = err.Error()
	}
	switch {
	case now == before:
	case err == nil:
		k.cfg.Log.Info("the API server reaches the validating webhook", "failurePolicy", k.cfg.Policy)
	default:
		k.cfg.Log.Warn("the validating webhook is not in force", "err", err)
	}
	return now
}

// keep looks at the configuration once. reached says that the webhook works.
func (k *Keeper) keep(ctx context.Context) (reached bool, err error) {
	have, err := k.cfg.Configurations.Get(ctx, Configuration, metav1.GetOptions{})
	if err != nil {
		k.version = ""
		return false, fmt.Errorf("webhook configuration %s: %w", Configuration, err)
	}
	if have, err = k.patch(ctx, have, ""); err != nil { // the roots first, else it cannot be reached
		return false, err
	}
	trial := k.cfg.Trial(ctx)
	policy := registrationv1.FailurePolicyType(k.cfg.Policy)
	if trial != nil {
		policy = registrationv1.Ignore
	}
	if _, err = k.patch(ctx, have, policy); err != nil {
		return false, err
	}
	return trial == nil, trial
}

// patch writes what is not as it should be.
func (k *Keeper) patch(ctx context.Context, have *registrationv1.ValidatingWebhookConfiguration, policy registrationv1.FailurePolicyType) (*registrationv1.ValidatingWebhookConfiguration, error) {
	k.version = have.ResourceVersion
	patch := corrections(have, k.cfg.Roots(), policy)
	if patch == nil {
		return have, nil
	}
	out, err := k.cfg.Configurations.Patch(ctx, Configuration, types.JSONPatchType, patch, metav1.PatchOptions{FieldManager: fieldManager})
	if err != nil {
		return nil, fmt.Errorf("webhook configuration %s: %w", Configuration, err)
	}
	k.version = out.ResourceVersion
	return out, nil
}

// operation is one of a JSON patch (RFC 6902).
type operation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value"`
}

// corrections returns the JSON patch that gives every webhook of a configuration
// the rules, these roots and this policy ("": as it is, Ignore where it was asked
// nothing yet), or nil when they have them. It applies to that version of the
// configuration only.
func corrections(have *registrationv1.ValidatingWebhookConfiguration, roots []byte, policy registrationv1.FailurePolicyType) []byte {
	ops := []operation{{"test", "/metadata/resourceVersion", have.ResourceVersion}}
	for i, w := range have.Webhooks {
		at, policy := fmt.Sprintf("/webhooks/%d", i), policy
		if !equality.Semantic.DeepEqual(w.Rules, rules) {
			ops = append(ops, operation{"add", at + "/rules", rules})
		}
		if len(w.Rules) == 0 && policy == "" {
			policy = registrationv1.Ignore
		}
		if !bytes.Equal(w.ClientConfig.CABundle, roots) {
			ops = append(ops, operation{"add", at + "/clientConfig/caBundle", roots})
		}
		if policy != "" && (w.FailurePolicy == nil || *w.FailurePolicy != policy) {
			ops = append(ops, operation{"add", at + "/failurePolicy", policy})
		}
	}
	if len(ops) == 1 {
		return nil
	}
	b, err := json.Marshal(ops)
	if err != nil {
		panic("admission: strings do not encode: " + err.Error())
	}
	return b
}

// wait returns when the configuration has changed, after pause, or when ctx ends.
func (k *Keeper) wait(ctx context.Context, pause time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, pause)
	defer cancel()
	w, err := k.cfg.Configurations.Watch(ctx, metav1.ListOptions{ResourceVersion: k.version,
		FieldSelector: fields.OneTermEqualSelector("metadata.name", Configuration).String()})
	if err != nil {
		<-ctx.Done()
		return
	}
	defer w.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case e, open := <-w.ResultChan():
			if !open || e.Type == watch.Error { // too old to be told of
				<-ctx.Done()
				return
			}
			if c, ok := e.Object.(*registrationv1.ValidatingWebhookConfiguration); ok && c.ResourceVersion != k.version {
				return
			}
		}
	}
}

// trialName is the name of the policy that trials are made with; it never exists.
const trialName = "culvert-validator-trial"

// Trial returns a function that has the API server try, and not store, an object
// which the webhook refuses: it shows whether the webhook is asked.
func Trial(config *rest.Config, namespace string) (func(context.Context) error, error) {
	config = rest.CopyConfig(config)
	config.APIPath, config.GroupVersion = "/apis", &schema.GroupVersion{Group: "security.istio.io", Version: "v1"}
	config.ContentType, config.AcceptContentTypes = runtime.ContentTypeJSON, runtime.ContentTypeJSON
	config.NegotiatedSerializer = scheme.Codecs.WithoutConversion() // it knows the Status that refusals are
	policies, err := rest.RESTClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("kubernetes client: %w", err)
	}
	const wrong = "70000"
	body := fmt.Sprintf(`{"apiVersion":"security.istio.io/v1","kind":"AuthorizationPolicy","metadata":{"name":%q,"namespace":%q},`+
		`"spec":{"rules":[{"to":[{"operation":{"ports":[%q]}}]}]}}`, trialName, namespace, wrong)
	return func(ctx context.Context) error {
		err := policies.Post().Namespace(namespace).Resource("authorizationpolicies").Param("dryRun", metav1.DryRunAll).
			SetHeader("Content-Type", "application/json").Body([]byte(body)).Do(ctx).Error()
		switch {
		case err == nil:
			return errors.New("the API server does not ask the webhook: is the Service's port 443 reachable from the API server?")
		case apierrors.IsInvalid(err) && strings.Contains(err.Error(), wrong):
			return nil
		}
		return fmt.Errorf("try the webhook: %w", err)
	}, nil
}
