package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// nodeRoots are folders of the usual names that each node has for itself, so that
// hostPath volumes work as they are and nodes do not meet.
var nodeRoots = []string{"/var/lib/kubelet", "/var/lib/containerd", "/var/lib/cni", "/var/log", "/etc/cni", "/opt/cni", "/etc/containerd"}

// wished are settings of the kernel that the kubelet would change for the whole
// machine. It finds files in their place that say what it wants.
var wished = map[string]string{
	"vm/overcommit_memory": "1", "vm/panic_on_oom": "0",
	"kernel/panic": "10", "kernel/panic_on_oops": "1",
	"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
}

// node runs a node.
func (s *supervisor) node() error {
	if err := s.mountNode(); err != nil {
		return err
	}
	if err := s.configure(); err != nil {
		return err
	}
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err == nil {
		files.Cur = files.Max
		_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &files) // fewer files will do for few pods
	}
	if err := s.start("containerd"); err != nil {
		return err
	}
	if err := s.await("ctr", "version"); err != nil {
		return err
	}
	for _, i := range images {
		command := importing(s.layout.image(i.name))
		out, err := exec.Command(s.layout.bin(command[0]), command[1:]...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("import image %s: %w: %s", i.name, err, out)
		}
	}
	if err := s.start("kubelet", "--config=/etc/containerd/kubelet.json", "--kubeconfig="+s.layout.kubeconfig("kubelet-"+s.place),
		"--hostname-override="+s.place, "--node-ip="+joined(placeOf(s.place).ip, placeOf(s.place).ip6)); err != nil {
		return err
	}
	if err := s.start("kube-proxy", "--config=/etc/containerd/kube-proxy.json"); err != nil {
		return err
	}
	if cniKind() == "flannel" {
		if err := s.startFlannel(); err != nil {
			return err
		}
	}
	return s.serve()
}

// mountNode gives the node its own view of the system.
func (s *supervisor) mountNode() error {
	if err := mountGroups(); err != nil {
		return err
	}
	// A pod with users of its own may mount /proc only where one can be seen that
	// nothing is mounted over, as it will be over /proc itself.
	clean := s.layout.node(s.place, "proc")
	if err := errors.Join(os.MkdirAll(clean, 0o755), mounts(mount{"proc", clean, "proc", 0, ""})); err != nil {
		return err
	}
	for setting, value := range wished {
		if err := s.bindFile("/proc/sys/"+setting, value+"\n"); err != nil {
			return err
		}
	}
	if err := mounts(mount{"tmpfs", "/run", "tmpfs", 0, "mode=755"}); err != nil {
		return err
	}
	for _, dir := range nodeRoots {
		own := s.layout.node(s.place, "root", dir)
		if err := errors.Join(os.MkdirAll(own, 0o755), os.MkdirAll(dir, 0o755), mounts(mount{own, dir, "", syscall.MS_BIND, ""})); err != nil {
			return err
		}
	}
	if err := s.bindFile("/etc/resolv.conf", ""); err != nil { // names of the cluster only
		return err
	}
	for _, dir := range []string{"/run/lock", "/run/netns", "/etc/cni/net.d", "/opt/cni/bin", "/var/log/pods", "/var/log/containers"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	// Volumes with mount propagation need it.
	return mounts(mount{"", "/", "", syscall.MS_REC | syscall.MS_SHARED, ""})
}

// bindFile shows other content at a path.
func (s *supervisor) bindFile(path, content string) error {
	file := s.layout.node(s.place, "files", strings.ReplaceAll(path, "/", "_"))
	return errors.Join(
		os.MkdirAll(filepath.Dir(file), 0o755),
		os.WriteFile(file, []byte(content), 0o644),
		mounts(mount{file, path, "", syscall.MS_BIND, ""}),
	)
}

// proxyMode is how kube-proxy works, cniKind what makes the pods' network.
func proxyMode() string { return cmp.Or(os.Getenv("PROXY_MODE"), "nftables") }
func cniKind() string   { return cmp.Or(os.Getenv("CNI"), "bridge") }

// cniFile is the node's network configuration.
var cniFile = func() string {
	if cniKind() == "flannel" {
		return "/etc/cni/net.d/10-flannel.conflist"
	}
	return "/etc/cni/net.d/10-bridge.conflist"
}()

// cniConfig is the plainest network there is: a bridge per node, or with CNI=ptp a
// link per pod.
func cniConfig(node string) any {
	kind := cniKind()
	network := fields{"type": kind, "ipam": ipam(placeOf(node))}
	if kind == "bridge" {
		network["bridge"], network["isGateway"], network["hairpinMode"] = "cni0", true, true
	}
	return fields{"cniVersion": "1.0.0", "name": "kube", "plugins": []any{
		network,
		fields{"type": "portmap", "snat": true, "capabilities": fields{"portMappings": true}},
	}}
}

// fields is a JSON object.
type fields = map[string]any

// configure writes the configuration of the node's programs. Theirs is YAML, of
// which JSON is a part.
func (s *supervisor) configure() error {
	if err := copyFiles(s.layout.path("bin", "cni"), "/opt/cni/bin"); err != nil {
		return err
	}
	files := map[string]any{"/etc/containerd/kubelet.json": s.kubelet(), "/etc/containerd/kube-proxy.json": s.kubeProxy()}
	if cniKind() != "flannel" { // which makes it later
		files[cniFile] = cniConfig(s.place)
	}
	for file, content := range files {
		if err := writeJSON(file, content); err != nil {
			return err
		}
	}
	return os.WriteFile("/etc/containerd/config.toml", []byte(s.containerd()), 0o644)
}

func writeJSON(file string, content any) error {
	raw, err := json.MarshalIndent(content, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(raw, '\n'), 0o644)
}

// containerd is containerd's configuration. A machine that is a container itself
// may not lower what the kernel thinks of killing a process first.
func (s *supervisor) containerd() string {
	return fmt.Sprintf(`version = 3
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = %q
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
BinaryName = %q
SystemdCgroup = false
`, imageName("pause"), s.layout.bin("runc"))
}

func (s *supervisor) kubelet() any {
	never := fields{}
	for _, signal := range []string{"memory.available", "nodefs.available", "nodefs.inodesFree", "imagefs.available", "imagefs.inodesFree"} {
		never[signal] = "0%"
	}
	return fields{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
		"cgroupDriver":             "cgroupfs", "failCgroupV1": false,
		"authentication": fields{"anonymous": fields{"enabled": false}, "webhook": fields{"enabled": true},
			"x509": fields{"clientCAFile": s.layout.pki("ca.crt")}},
		"authorization":     fields{"mode": "Webhook"},
		"tlsCertFile":       s.layout.pki("serving-" + s.place + ".crt"),
		"tlsPrivateKeyFile": s.layout.pki("serving-" + s.place + ".key"),
		"clusterDomain":     "cluster.local", "clusterDNS": inFamily(dnsIP, dnsIP6)[:1], "resolvConf": "/etc/resolv.conf",
		"failSwapOn": false, "oomScoreAdj": 0, "maxOpenFiles": 20000, "serializeImagePulls": false,
		"localStorageCapacityIsolation": false, "evictionHard": never,
		"imageGCHighThresholdPercent": 100, "imageMinimumGCAge": "24h", "nodeStatusUpdateFrequency": "5s",
		// What tests kill comes back at once, each time.
		"crashLoopBackOff": fields{"maxContainerRestartPeriod": "1s"},
	}
}

func (s *supervisor) kubeProxy() any {
	fast := fields{"minSyncPeriod": "100ms"}
	return fields{
		"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
		"mode": proxyMode(), "hostnameOverride": s.place, "clusterCIDR": joined(podRange, podRange6), "oomScoreAdj": 0,
		"clientConnection": fields{"kubeconfig": s.layout.kubeconfig("kube-proxy")},
		"iptables":         fast, "nftables": fast,
		// The kernel's limits of connection tracking are the machine's.
		"conntrack": fields{"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
	}
}

func copyFiles(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, d.Name()), content, 0o755)
	})
}
