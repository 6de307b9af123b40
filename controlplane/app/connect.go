package app

import (
	"fmt"
	"path/filepath"

	authentication "k8s.io/client-go/kubernetes/typed/authentication/v1"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/culvert-mesh/culvert/controlplane/ca"
	"github.com/culvert-mesh/culvert/controlplane/source"
	"github.com/culvert-mesh/culvert/controlplane/source/file"
	"github.com/culvert-mesh/culvert/controlplane/source/kube"
	"github.com/culvert-mesh/culvert/pkg/logging"
	"github.com/culvert-mesh/culvert/pkg/run"
	"github.com/culvert-mesh/culvert/pkg/token"
)

// connect makes the source of objects, and who says to whom a token belongs: an
// API server is both.
func (a *App) connect() (ca.Authenticator, error) {
	log := logging.Scope(a.log, "source")
	if !a.cfg.Kube {
		a.source = file.New(a.cfg.Layers, filepath.Join(a.cfg.State, "last-good"), log)
		return token.NewVerifier(token.VerifierConfig{JWKS: a.cfg.TokenKeys}), nil
	}
	config, err := clientcmd.BuildConfigFromFlags("", a.cfg.Kubeconfig) // without a file: as a pod does
	if err != nil {
		return nil, fmt.Errorf("API server: %w", err)
	}
	config.UserAgent = "culvert-controlplane/" + run.Version()
	config.QPS, config.Burst = 200, 400 // token reviews of a cluster whose proxies all start at once
	a.kube = config
	var asked []source.Kind
	if a.cfg.Mesh.NetworkPolicies {
		asked = append(asked, source.KindNetworkPolicy)
	}
	if a.source, err = kube.New(config, log, asked...); err != nil {
		return nil, err
	}
	reviews, err := authentication.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("API server: %w", err)
	}
	return ca.NewReviewer(reviews.TokenReviews(), a.cfg.Audiences), nil
}
