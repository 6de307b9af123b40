package install

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"

	"github.com/culvert-mesh/culvert/pkg/mesh"
)

// Ask asks a program of the mesh on its admin port. That is on the loopback of the
// pod, so it goes the way of kubectl port-forward: who may do that may ask.
func (c *Cluster) Ask(ctx context.Context, namespace, pod, method, path string, body []byte) ([]byte, error) {
	port, stop, err := c.forward(namespace, pod, mesh.PortAdmin)
	if err != nil {
		return nil, err
	}
	defer stop()
	req, err := http.NewRequestWithContext(ctx, method, fmt.Sprintf("http://127.0.0.1:%d%s", port, path), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask %s/%s: %w", namespace, pod, err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("ask %s/%s: %s: %s", namespace, pod, resp.Status, bytes.TrimSpace(answer))
	}
	return answer, err
}

// forward opens a port of this machine that leads to one of a pod's.
func (c *Cluster) forward(namespace, pod string, port uint16) (local uint16, stop func(), err error) {
	transport, upgrader, err := spdy.RoundTripperFor(c.Config)
	if err != nil {
		return 0, nil, err
	}
	url := c.Client.CoreV1().RESTClient().Post().Resource("pods").Namespace(namespace).Name(pod).SubResource("portforward").URL()
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, url)
	stopped, ready, failed := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	f, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, []string{"0:" + strconv.Itoa(int(port))}, stopped, ready, io.Discard, io.Discard)
	if err != nil {
		return 0, nil, err
	}
	go func() { failed <- f.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-failed:
		return 0, nil, explain("forward a port of "+namespace+"/"+pod, err)
	}
	ports, err := f.GetPorts()
	if err != nil {
		close(stopped)
		return 0, nil, err
	}
	return ports[0].Local, func() { close(stopped); <-failed }, nil
}
