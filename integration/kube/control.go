package main

import (
	"strings"
)

// control runs the control plane of Kubernetes.
func (s *supervisor) control() error {
	l := s.layout
	if err := s.start("etcd", "--name=kube", "--data-dir="+l.node(control, "etcd"), "--unsafe-no-fsync", "--log-level=warn",
		"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
		"--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
		"--initial-cluster=kube=http://127.0.0.1:2380"); err != nil {
		return err
	}
	if err := s.start("kube-apiserver", s.apiServer()...); err != nil {
		return err
	}
	// The other two give up when the API server refuses them, as it does until it
	// has made the standard roles.
	if err := s.await("kubectl", "--kubeconfig="+l.kubeconfig("admin"), "--request-timeout=5s", "get", "--raw", "/readyz"); err != nil {
		return err
	}
	if err := s.start("kube-controller-manager", append(kubeconfigs(l.kubeconfig("controller-manager")),
		"--leader-elect=false", "--use-service-account-credentials=true", "--root-ca-file="+l.pki("ca.crt"),
		"--service-account-private-key-file="+l.pki("accounts.key"),
		"--cluster-signing-cert-file="+l.pki("ca.crt"), "--cluster-signing-key-file="+l.pki("ca.key"),
		"--allocate-node-cidrs=false", "--service-cluster-ip-range="+joined(services, services6),
		"--kube-api-qps=200", "--kube-api-burst=400", // else the first service accounts take seconds
	)...); err != nil {
		return err
	}
	if err := s.start("kube-scheduler", append(kubeconfigs(l.kubeconfig("scheduler")), "--leader-elect=false")...); err != nil {
		return err
	}
	return s.serve()
}

func kubeconfigs(file string) []string {
	return []string{"--kubeconfig=" + file, "--authentication-kubeconfig=" + file, "--authorization-kubeconfig=" + file}
}

func (s *supervisor) apiServer() []string {
	l := s.layout
	const extra = "X-Remote-Extra-"
	return []string{
		"--etcd-servers=http://127.0.0.1:2379", "--bind-address=" + anyAddress(), "--secure-port=6443", "--advertise-address=" + inFamily(controlIP, network6+"2")[0],
		"--service-cluster-ip-range=" + joined(services, services6), "--allow-privileged=true", "--profiling=false", "--enable-aggregator-routing=true",
		"--authorization-mode=" + strings.Join([]string{"Node", "RBAC"}, ","), "--enable-admission-plugins=NodeRestriction",
		"--client-ca-file=" + l.pki("ca.crt"), "--tls-cert-file=" + l.pki("api-server.crt"), "--tls-private-key-file=" + l.pki("api-server.key"),
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + l.pki("accounts.pub"), "--service-account-signing-key-file=" + l.pki("accounts.key"),
		"--kubelet-certificate-authority=" + l.pki("ca.crt"), "--kubelet-preferred-address-types=InternalIP",
		"--kubelet-client-certificate=" + l.pki("kubelet-client.crt"), "--kubelet-client-key=" + l.pki("kubelet-client.key"),
		"--requestheader-client-ca-file=" + l.pki("front-ca.crt"), "--requestheader-allowed-names=front-client",
		"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=" + extra,
		"--proxy-client-cert-file=" + l.pki("front-client.crt"), "--proxy-client-key-file=" + l.pki("front-client.key"),
	}
}
