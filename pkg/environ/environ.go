// Package environ reads a program's settings from its environment, strictly.
//
//	e := environ.New(environ)
//	cfg.Port = e.Port("ADMIN_PORT", 15000)     a variable that is not set, or set to
//	cfg.Wait = e.Duration("WAIT", time.Minute) nothing, has the fallback's value
//	return cfg, e.Err()                        every mistake at once, each by its name
//
// A value that does not parse is a mistake, never the fallback in silence. An Env
// belongs to one goroutine.
package environ

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Env is an environment and the mistakes found in it.
type Env struct {
	vars  map[string]string
	asked map[string]bool
	errs  []error
}

// New takes "NAME=value" pairs; a later pair wins.
func New(environ []string) *Env {
	e := &Env{vars: make(map[string]string, len(environ)), asked: map[string]bool{}}
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		e.vars[name] = value
	}
	return e
}

// Err returns every mistake so far, nil without one.
func (e *Env) Err() error { return errors.Join(e.errs...) }

// Asked returns the names that were read so far, sorted; a prefix ends in "*". It is
// for tests, which compare it with the documents.
func (e *Env) Asked() []string { return slices.Sorted(maps.Keys(e.asked)) }

func (e *Env) get(name string) string {
	e.asked[name] = true
	return e.vars[name]
}

// Failf notes a mistake in a variable.
func (e *Env) Failf(name, format string, args ...any) {
	e.errs = append(e.errs, fmt.Errorf("%s: %s", name, fmt.Sprintf(format, args...)))
}

// Lookup tells a variable that is set to nothing from one that is not set.
func (e *Env) Lookup(name string) (string, bool) {
	e.asked[name] = true
	v, ok := e.vars[name]
	return v, ok
}

// Text returns a variable as it is.
func (e *Env) Text(name, fallback string) string {
	if v := e.get(name); v != "" {
		return v
	}
	return fallback
}

// Required returns a variable that must be set.
func (e *Env) Required(name string) string {
	v := e.get(name)
	if v == "" {
		e.Failf(name, "is required")
	}
	return v
}

// Bool accepts exactly "true" and "false".
func (e *Env) Bool(name string, fallback bool) bool {
	switch v := e.get(name); v {
	case "":
		return fallback
	case "true":
		return true
	case "false":
		return false
	default:
		e.Failf(name, "%q is neither true nor false", v)
		return fallback
	}
}

// Duration accepts Go's notation and whole days, such as "5m", "1h30m" and "2d";
// not negative ones.
func (e *Env) Duration(name string, fallback time.Duration) time.Duration {
	v := e.get(name)
	if v == "" {
		return fallback
	}
	d, err := parseDuration(v)
	if err != nil || d < 0 {
		e.Failf(name, "%q is no duration such as 30s or 5m", v)
		return fallback
	}
	return d
}

func parseDuration(s string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		return time.Duration(n) * 24 * time.Hour, err
	}
	return time.ParseDuration(s)
}

// Integer accepts a decimal number within [lowest, highest].
func (e *Env) Integer(name string, fallback, lowest, highest uint64) uint64 {
	v := e.get(name)
	if v == "" {
		return fallback
	}
	n, err := strconv.ParseUint(v, 10, 64)
	if err != nil || n < lowest || n > highest {
		e.Failf(name, "%q is no number between %d and %d", v, lowest, highest)
		return fallback
	}
	return n
}

// Port accepts a port; 0 lets the kernel choose.
func (e *Env) Port(name string, fallback uint16) uint16 {
	return uint16(e.Integer(name, uint64(fallback), 0, math.MaxUint16))
}

// Prefixed collects NAME=value for every variable prefix+NAME.
func (e *Env) Prefixed(prefix string) map[string]string {
	e.asked[prefix+"*"] = true
	out := map[string]string{}
	for name, v := range e.vars {
		if rest, ok := strings.CutPrefix(name, prefix); ok && rest != "" {
			out[rest] = v
		}
	}
	return out
}

// Refuse reports a feature that is asked for and not there, which would otherwise
// be ignored.
func (e *Env) Refuse(name string, asked bool) {
	if asked {
		e.Failf(name, "%q is not supported", e.vars[name])
	}
}

// DrainTime is how long connections may go on after SIGTERM, so that the process
// ends by itself within TERMINATION_GRACE_PERIOD_SECONDS of its pod: five seconds
// less, one second less of a short period. Without the variable it is fallback.
func (e *Env) DrainTime(fallback time.Duration) time.Duration {
	const name = "TERMINATION_GRACE_PERIOD_SECONDS"
	if e.get(name) == "" {
		return fallback
	}
	grace := time.Duration(e.Integer(name, 0, 0, math.MaxInt32)) * time.Second
	if grace > 10*time.Second {
		return grace - 5*time.Second
	}
	return max(grace-time.Second, time.Second)
}
