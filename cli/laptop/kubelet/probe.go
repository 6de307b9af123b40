package kubelet

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/culvert-mesh/culvert/cli/laptop/cluster"
	"github.com/culvert-mesh/culvert/cli/laptop/pod"
	"github.com/culvert-mesh/culvert/pkg/netns"
	"github.com/culvert-mesh/culvert/pkg/run"
)

// eagerPeriod is how often a pod that has not answered yet is asked: waiting a
// whole period for a process that needs 20 ms helps nobody.
const eagerPeriod = 50 * time.Millisecond

// probe asks a process how it is until ctx ends, and says on unhealthy why it
// should be started anew. It reports readiness.
func (k *Kubelet) probe(ctx context.Context, p *pod.Process, unhealthy chan<- string) {
	ctr := k.pod.Object.Spec.Containers[0]
	if ctr.StartupProbe != nil {
		if err := k.untilOK(ctx, ctr.StartupProbe, p); err != nil {
			if ctx.Err() == nil {
				unhealthy <- "startup probe failed: " + err.Error()
			}
			return
		}
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	if ctr.LivenessProbe != nil {
		wg.Go(func() { k.liveness(ctx, ctr.LivenessProbe, p, unhealthy) })
	}
	if ctr.ReadinessProbe == nil {
		k.update(func(s *cluster.Status) { s.Ready = true })
		return
	}
	k.readiness(ctx, ctr.ReadinessProbe, p)
}

// untilOK asks until the probe succeeds; it fails when the probe has failed for
// as long as its threshold allows.
func (k *Kubelet) untilOK(ctx context.Context, probe *corev1.Probe, p *pod.Process) error {
	if run.Sleep(ctx, seconds(probe.InitialDelaySeconds, 0)) != nil {
		return ctx.Err()
	}
	patience := time.Duration(cmp.Or(probe.FailureThreshold, 3)) * seconds(probe.PeriodSeconds, 10)
	for began := time.Now(); ; {
		err := k.ask(ctx, probe, p)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil || time.Since(began) > patience {
			return err
		}
		if run.Sleep(ctx, eagerPeriod) != nil {
			return ctx.Err()
		}
	}
}

func (k *Kubelet) liveness(ctx context.Context, probe *corev1.Probe, p *pod.Process, unhealthy chan<- string) {
	if run.Sleep(ctx, seconds(probe.InitialDelaySeconds, 0)) != nil {
		return
	}
	for failures := int32(0); ; {
		if err := k.ask(ctx, probe, p); err == nil {
			failures = 0
		} else if failures++; failures >= cmp.Or(probe.FailureThreshold, 3) && ctx.Err() == nil {
			select {
			case unhealthy <- "liveness probe failed: " + err.Error():
			default:
			}
			return
		}
		if run.Sleep(ctx, seconds(probe.PeriodSeconds, 10)) != nil {
			return
		}
	}
}

func (k *Kubelet) readiness(ctx context.Context, probe *corev1.Probe, p *pod.Process) {
	if run.Sleep(ctx, seconds(probe.InitialDelaySeconds, 0)) != nil {
		return
	}
	var failures int32
	for ready := false; ; {
		err := k.ask(ctx, probe, p)
		if ctx.Err() != nil {
			return
		}
		message := ""
		if err == nil {
			failures, ready = 0, true
		} else {
			message = "readiness probe failed: " + err.Error()
			if failures++; failures >= cmp.Or(probe.FailureThreshold, 3) {
				ready = false
			}
		}
		k.update(func(s *cluster.Status) { s.Ready, s.Message = ready, message })
		wait := seconds(probe.PeriodSeconds, 10)
		if !ready {
			wait = min(wait, eagerPeriod)
		}
		if run.Sleep(ctx, wait) != nil {
			return
		}
	}
}

func seconds(n, otherwise int32) time.Duration {
	return time.Duration(cmp.Or(n, otherwise)) * time.Second
}

// ask makes one probe.
func (k *Kubelet) ask(ctx context.Context, probe *corev1.Probe, p *pod.Process) error {
	ctx, cancel := context.WithTimeout(ctx, seconds(probe.TimeoutSeconds, 1))
	defer cancel()
	switch {
	case probe.HTTPGet != nil:
		return k.askHTTP(ctx, probe.HTTPGet)
	case probe.TCPSocket != nil:
		port, err := k.port(probe.TCPSocket.Port)
		if err != nil {
			return err
		}
		c, err := k.dial(ctx, port)
		if err != nil {
			return err
		}
		return c.Close()
	case probe.Exec != nil:
		return k.askExec(ctx, probe.Exec.Command, p)
	}
	return fmt.Errorf("only httpGet, tcpSocket and exec probes are supported")
}

func (k *Kubelet) dial(ctx context.Context, port uint16) (net.Conn, error) {
	return k.cfg.Node.NS.Dial(ctx, netip.AddrPortFrom(k.pod.Addrs.V4, port), netns.DialOptions{})
}

// port resolves a port that a probe gives as a number or a name.
func (k *Kubelet) port(p intstr.IntOrString) (uint16, error) {
	if p.Type == intstr.Int {
		return uint16(p.IntVal), nil
	}
	for _, cp := range k.pod.Object.Spec.Containers[0].Ports {
		if cp.Name == p.StrVal {
			return uint16(cp.ContainerPort), nil
		}
	}
	n, err := strconv.ParseUint(p.StrVal, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("the container has no port %q", p.StrVal)
	}
	return uint16(n), nil
}

func (k *Kubelet) askHTTP(ctx context.Context, get *corev1.HTTPGetAction) error {
	port, err := k.port(get.Port)
	if err != nil {
		return err
	}
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return k.dial(ctx, port)
	}}
	host := net.JoinHostPort(k.pod.Addrs.V4.String(), strconv.Itoa(int(port)))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+host+"/"+strings.TrimPrefix(get.Path, "/"), nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "kube-probe/culvert")
	for _, h := range get.HTTPHeaders {
		req.Header.Add(h.Name, h.Value)
		if strings.EqualFold(h.Name, "Host") {
			req.Host = h.Value
		}
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode >= 400 {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 200))
		return fmt.Errorf("HTTP status %d: %s", resp.StatusCode, bytes.TrimSpace(body))
	}
	return nil
}

func (k *Kubelet) askExec(ctx context.Context, command []string, p *pod.Process) error {
	if len(command) == 0 {
		return fmt.Errorf("exec probe without a command")
	}
	env, err := k.environment(k.pod.Object.Spec.Containers[0])
	if err != nil {
		return err
	}
	status, err := pod.Exec(ctx, pod.ExecSpec{PID: p.PID(), Command: command, Env: env})
	if err == nil && status != 0 {
		err = fmt.Errorf("exit status %d", status)
	}
	return err
}
