package secret

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/culvert-mesh/culvert/pkg/run"
)

// AnnotationRotate, on the self-made Secret with any value, asks for a new root: it
// is trusted at once and signs a day later. The annotation goes when that is begun.
const AnnotationRotate = "culvert-mesh.github.io/rotate-root"

// Lead does what is due of the self-made authority, until ctx ends. Only one
// replica should, though several would do no harm.
func (k *Keeper) Lead(ctx context.Context) error {
	for {
		wait := run.Jitter(checkEvery, 0.2)
		if err := k.rotate(ctx, time.Now()); err != nil && ctx.Err() == nil {
			k.cfg.Log.Error("certificate authority not rotated", "err", err)
			wait = run.Jitter(maxRetry, 0.2)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-k.owned:
		case <-time.After(wait):
		}
	}
}

// rotate does what is due at now. The watch brings the result to every replica.
func (k *Keeper) rotate(ctx context.Context, now time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	secrets := k.cfg.Client.CoreV1().Secrets(k.cfg.Namespace)
	s, err := secrets.Get(ctx, k.cfg.Own, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil // it is not needed, or Run makes it
	}
	if err != nil {
		return fmt.Errorf("secret %s: %w", k.cfg.Own, k.explain(err, k.cfg.Own, "get"))
	}
	next, err := k.due(s, now)
	if next == nil || err != nil {
		return err
	}
	if _, err = secrets.Update(ctx, next, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("update secret %s: %w", k.cfg.Own, k.explain(err, k.cfg.Own, "update"))
	}
	k.cfg.Log.Info("certificate authority rotated", "secret", k.cfg.Own)
	return nil
}

// due returns the Secret as it should be at now, nil when it is.
func (k *Keeper) due(s *corev1.Secret, now time.Time) (*corev1.Secret, error) {
	st, err := parseOwn(s, now)
	if err != nil {
		return nil, fmt.Errorf("secret %s: %w", k.cfg.Own, err)
	}
	st, changed, err := st.Advance(now)
	if err != nil {
		return nil, err
	}
	_, asked := s.Annotations[AnnotationRotate]
	if asked {
		if next, err := st.Rotate(now); err == nil {
			st = next
		} else {
			k.cfg.Log.Warn("no new root", "err", err)
		}
	}
	if !changed && !asked {
		return nil, nil
	}
	next, err := secretOf(st, s, k.cfg)
	if err == nil {
		delete(next.Annotations, AnnotationRotate)
	}
	return next, err
}
