package app

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// environment reads variables strictly: a value that does not parse is an error
// that names its variable, and all such errors are told at once.
type environment struct {
	vars map[string]string
	errs []error
}

// newEnvironment takes "NAME=value" pairs; a later pair wins.
func newEnvironment(environ []string) *environment {
	e := &environment{vars: make(map[string]string, len(environ))}
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		e.vars[name] = value
	}
	return e
}

func (e *environment) err() error { return errors.Join(e.errs...) }

func (e *environment) fail(name, format string, args ...any) {
	e.errs = append(e.errs, fmt.Errorf("%s: %s", name, fmt.Sprintf(format, args...)))
}

// lookup tells a variable that is set to nothing from one that is not set.
func (e *environment) lookup(name string) (string, bool) {
	v, ok := e.vars[name]
	return v, ok
}

func (e *environment) text(name, fallback string) string {
	if v := e.vars[name]; v != "" {
		return v
	}
	return fallback
}

// boolean accepts exactly "true" and "false".
func (e *environment) boolean(name string, fallback bool) bool {
	switch v := e.vars[name]; v {
	case "":
		return fallback
	case "true":
		return true
	case "false":
		return false
	default:
		e.fail(name, "%q is neither true nor false", v)
		return fallback
	}
}

// duration accepts Go's notation and whole days, such as "5m", "1h30m" and "2d".
func (e *environment) duration(name string, fallback time.Duration) time.Duration {
	v := e.vars[name]
	if v == "" {
		return fallback
	}
	d, err := parseDuration(v)
	if err != nil || d < 0 {
		e.fail(name, "%q is no duration such as 30s or 5m", v)
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

// integer accepts a decimal number within [lowest, highest].
func (e *environment) integer(name string, fallback, lowest, highest uint64) uint64 {
	v := e.vars[name]
	if v == "" {
		return fallback
	}
	n, err := strconv.ParseUint(v, 10, 64)
	if err != nil || n < lowest || n > highest {
		e.fail(name, "%q is no number between %d and %d", v, lowest, highest)
		return fallback
	}
	return n
}

// prefixed collects NAME=value for every variable prefix+NAME.
func (e *environment) prefixed(prefix string) map[string]string {
	out := map[string]string{}
	for name, v := range e.vars {
		if rest, ok := strings.CutPrefix(name, prefix); ok && rest != "" {
			out[rest] = v
		}
	}
	return out
}

// refuse reports a feature that is asked for and not carried.
func (e *environment) refuse(name string, asked bool) {
	if asked {
		e.fail(name, "%q is not supported", e.vars[name])
	}
}
