package netpolicy

import (
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// portSet is TCP ports.
type portSet struct {
	all  bool
	in   [1 << 16]bool
	many int // that are in
}

func (s *portSet) add(from, to int32) {
	for p := max(from, 0); p <= min(to, 1<<16-1); p++ {
		if !s.in[p] {
			s.in[p] = true
			s.many++
		}
	}
}

func (s *portSet) none() bool { return !s.all && s.many == 0 }

// other matches all other ports. It lists whichever are fewer, those that are in or
// those that are not.
func (s *portSet) other() (m mesh.Match) {
	var list []uint16
	few := s.many <= 1<<15
	for p, in := range s.in {
		if in == few {
			list = append(list, uint16(p))
		}
	}
	if few {
		m.NotDestinationPorts = list
	} else {
		m.DestinationPorts = list
	}
	return m
}

func tcp(p networkingv1.NetworkPolicyPort) bool {
	return p.Protocol == nil || *p.Protocol == corev1.ProtocolTCP
}

// portsOf are the TCP ports of a rule. A port that no container has the name of is
// none.
func (s Set) portsOf(r rule) *portSet {
	out := &portSet{all: len(r.ports) == 0}
	for _, p := range r.ports {
		switch {
		case !tcp(p):
		case p.Port == nil:
			out.all = true
		case p.Port.Type == intstr.String:
			for _, n := range s.ports[p.Port.StrVal] {
				out.add(int32(n), int32(n))
			}
		case p.EndPort != nil:
			out.add(p.Port.IntVal, *p.EndPort)
		default:
			out.add(p.Port.IntVal, p.Port.IntVal)
		}
	}
	// There is no port 0: without it the rest is all.
	out.all = out.all || out.many == 1<<16-1 && !out.in[0] || out.many == 1<<16
	return out
}
