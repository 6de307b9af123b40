package ca

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/culvert-mesh/culvert/pkg/mesh"
	"github.com/culvert-mesh/culvert/pkg/run"
	"github.com/culvert-mesh/culvert/pkg/token"
)

// onNode says why the caller may not have a certificate for id; nil when a pod of
// id runs on the node that the caller runs on.
func (s *Server) onNode(caller *token.Claims, id mesh.Identity) error {
	node, err := s.nodeOf(caller)
	switch {
	case err != nil:
		return err
	case s.cfg.Rule == nil || !s.cfg.Rule.Runs(node, id.Namespace, id.ServiceAccount):
		return fmt.Errorf("no pod of %s/%s on node %s", id.Namespace, id.ServiceAccount, node)
	}
	return nil
}

// nodeOf returns the node that the caller runs on. Where pods are known it is that
// of the very pod that the token was made for, which must still be there: a token
// outlives its pod where only its signature is checked, and one that is bound to
// no pod could come from anywhere.
func (s *Server) nodeOf(caller *token.Claims) (string, error) {
	if s.cfg.Pods == nil {
		if caller.Node.Name == "" {
			return "", errors.New("caller's token names no node")
		}
		return caller.Node.Name, nil
	}
	if caller.Pod.Name == "" {
		return "", errors.New("caller's token is bound to no pod")
	}
	uid, account, node, ok := s.cfg.Pods.Pod(caller.Namespace, caller.Pod.Name)
	switch {
	case !ok:
		return "", fmt.Errorf("caller's pod %s/%s is not there", caller.Namespace, caller.Pod.Name)
	case uid != caller.Pod.UID:
		return "", fmt.Errorf("caller's pod %s/%s is another one now: its UID is %s, the token's is %s", caller.Namespace, caller.Pod.Name, uid, caller.Pod.UID)
	case account != caller.ServiceAccount.Name:
		return "", fmt.Errorf("caller's pod %s/%s is of service account %s, the token's is %s", caller.Namespace, caller.Pod.Name, account, caller.ServiceAccount.Name)
	case node == "":
		return "", fmt.Errorf("caller's pod %s/%s is on no node yet", caller.Namespace, caller.Pod.Name)
	case caller.Node.Name != "" && node != caller.Node.Name:
		return "", fmt.Errorf("caller's pod %s/%s is on node %s, the token's on %s", caller.Namespace, caller.Pod.Name, node, caller.Node.Name)
	}
	return node, nil
}

// ready waits until the rules know the mesh: before that they know of nobody.
func (s *Server) ready(ctx context.Context) error {
	if s.cfg.Ready == nil {
		return nil
	}
	select {
	case <-s.cfg.Ready:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the mesh is not known yet: %w", ctx.Err())
	}
}

// lag is a wait for what another replica, which told the caller of a pod, knew a
// moment earlier.
type lag struct{ left time.Duration }

// lagStep is the time between two looks.
const lagStep = 20 * time.Millisecond

func newLag(d time.Duration) *lag { return &lag{d} }

// more waits a little; false when the time is over.
func (l *lag) more(ctx context.Context) bool {
	if l.left <= 0 {
		return false
	}
	l.left -= lagStep
	return run.Sleep(ctx, lagStep) == nil
}
