package secret

import (
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/culvert-mesh/culvert/pkg/certs/selfsigned"
)

// Keys of the Secrets. Those of cacerts are Istio's, or those of a Secret of type
// kubernetes.io/tls as cert-manager writes it.
const (
	keyCert  = "ca-cert.pem"
	keyKey   = "ca-key.pem"
	keyChain = "cert-chain.pem"
	keyRoots = "root-cert.pem"
	keyState = "authority.json" // of the self-made one: all roots and the intermediate, with keys

	keyTLSRoots = "ca.crt"
)

// typeOwn is the type that Istio gives its self-made Secret.
const typeOwn = "istio.io/ca-root"

// from says where an authority comes from.
type from int

const (
	nowhere from = iota
	plugged
	selfMade
)

// choice is what should be in force.
type choice struct {
	material *selfsigned.Material // nil: what is in force stays
	from     from
	state    selfsigned.State // of material that is self-made
	create   bool             // the self-made Secret is to be made
	refused  error            // why the one that should be in force is not
}

// choose decides what should be in force, given the Secrets (nil: there is none)
// and where what is in force now comes from.
func choose(users, own *corev1.Secret, used from, cfg Config, now time.Time) choice {
	switch {
	case users != nil:
		m, err := parsePlugged(users, cfg.TrustDomain, now)
		if err != nil {
			return choice{refused: fmt.Errorf("secret %s/%s: %w", cfg.Namespace, cfg.Plugged, err)}
		}
		return choice{material: m, from: plugged}
	case used == plugged:
		return choice{refused: fmt.Errorf("secret %s/%s is gone: put it back; a replica that starts without it signs with %s", cfg.Namespace, cfg.Plugged, cfg.Own)}
	case own == nil:
		return choice{create: true}
	}
	st, err := parseOwn(own, now)
	if err != nil {
		return choice{refused: fmt.Errorf("secret %s/%s: %w", cfg.Namespace, cfg.Own, err)}
	}
	return choice{material: st.Material(), from: selfMade, state: st}
}

// parsePlugged reads a user's authority.
func parsePlugged(s *corev1.Secret, trustDomain string, now time.Time) (*selfsigned.Material, error) {
	d := s.Data
	if _, ok := d[keyCert]; !ok && len(d[corev1.TLSCertKey]) > 0 {
		if err := missing(d, corev1.TLSCertKey, corev1.TLSPrivateKeyKey, keyTLSRoots); err != nil {
			return nil, err
		}
		return selfsigned.ParseMaterial(selfsigned.Files{Cert: d[corev1.TLSCertKey], Key: d[corev1.TLSPrivateKeyKey], Roots: d[keyTLSRoots]}, trustDomain, now)
	}
	if err := missing(d, keyCert, keyKey, keyRoots); err != nil {
		return nil, err
	}
	return selfsigned.ParseMaterial(selfsigned.Files{Cert: d[keyCert], Key: d[keyKey], Chain: d[keyChain], Roots: d[keyRoots]}, trustDomain, now)
}

func missing(data map[string][]byte, keys ...string) error {
	var absent []string
	for _, key := range keys {
		if len(data[key]) == 0 {
			absent = append(absent, key)
		}
	}
	if len(absent) == 0 {
		return nil
	}
	return fmt.Errorf("it has no %s", strings.Join(absent, " and no "))
}

// parseOwn reads a self-made authority: ours, or one that Istio made.
func parseOwn(s *corev1.Secret, now time.Time) (selfsigned.State, error) {
	if text := s.Data[keyState]; len(text) > 0 {
		st, err := selfsigned.ParseState(text)
		if err != nil {
			return st, fmt.Errorf("%s is damaged: %w (restore it, or delete the Secret: while a replica runs it is put back, else a new root is made that nobody trusts yet)", keyState, err)
		}
		return st, nil
	}
	if err := missing(s.Data, keyCert, keyKey); err != nil {
		return selfsigned.State{}, err
	}
	return selfsigned.AdoptState(s.Data[keyCert], s.Data[keyKey], now)
}

// secretOf returns the Secret that keeps a self-made state; base is the one to
// change, nil for a new one.
func secretOf(st selfsigned.State, base *corev1.Secret, cfg Config) (*corev1.Secret, error) {
	text, err := st.Encode()
	files, more := st.Files()
	if err := errors.Join(err, more); err != nil {
		return nil, fmt.Errorf("secret %s: %w", cfg.Own, err)
	}
	if base == nil {
		base = &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: cfg.Namespace, Name: cfg.Own}, Type: typeOwn}
	}
	s := base.DeepCopy()
	if s.Data == nil {
		s.Data = map[string][]byte{}
	}
	s.Data[keyState], s.Data[keyCert], s.Data[keyKey], s.Data[keyRoots] = text, files.Cert, files.Key, files.Roots
	return s, nil
}
