package app

import (
	"sync/atomic"
	"time"

	"github.com/culvert-mesh/culvert/cni-plugin/redirect"
)

// rulesCheck is how often the rules of a pod in the mesh are looked at without any
// notice that they changed. Notices tell of nftables rules, not of routing.
const rulesCheck = 30 * time.Second

// upkeep is what keeps a pod's rules whole after they were applied. Its fields
// but doubted belong to whoever holds the pod's turn.
type upkeep struct {
	watch   *redirect.Watch // nil: nobody tells, and it is looked now and then
	checked time.Time
	doubted atomic.Bool // something changed the rules, perhaps we
}

func (u *upkeep) stop() {
	u.watch.Close()
	u.watch, u.checked = nil, time.Time{}
}

// due reports whether the rules are to be looked at.
func (u *upkeep) due(now time.Time) bool {
	return u.doubted.Swap(false) || now.Sub(u.checked) >= rulesCheck
}

// keepRules applies the pod's rules when they are new, and again when something
// else has damaged them: a firewall's restart that flushes everything, a person.
// Connections go on as long as nothing is sent on them between damage and repair.
func (p *pod) keepRules(rules redirect.Ruleset) error {
	text, now := rules.String(), time.Now()
	damage := ""
	if text == p.rules {
		if !p.upkeep.due(now) {
			return nil
		}
		var err error
		damage, err = redirect.Damage(p.ns, rules)
		if err != nil {
			p.upkeep.doubted.Store(true)
			return err
		}
		p.upkeep.checked = now
		if damage == "" {
			return nil
		}
	} else {
		p.tellForeign()
	}
	if err := redirect.Apply(p.ns, rules); err != nil {
		return err
	}
	p.rules, p.upkeep.checked = text, now
	p.watchRules()
	if damage != "" {
		p.agent.parts.Metrics.restored.Inc()
		p.tell(Warning, "MeshRulesRestored", "something else changed the rules that redirect its traffic ("+damage+"); they are back")
		p.log.Warn("the pod's rules were damaged, and are restored", "damage", damage)
	}
	return nil
}

// watchRules has the pod looked at whenever its rules change.
func (p *pod) watchRules() {
	if p.upkeep.watch != nil {
		return
	}
	w, err := redirect.NewWatch(p.ns, func() {
		p.upkeep.doubted.Store(true)
		p.poke()
	})
	if err != nil {
		p.log.Warn("changes of the pod's rules will be noticed late", "error", err)
		return
	}
	p.upkeep.watch = w
}
