// Command kube runs a Kubernetes cluster on this machine, for tests: etcd, the API
// server and two nodes with containerd, kubelet and kube-proxy, built from Go
// modules and run as processes in network namespaces. There is no container engine
// and no virtual machine.
//
//	            ckube0 10.79.0.1 ── this machine
//	   ┌─────────────┼──────────────┐
//	control .2     node1 .11      node2 .12        each one's network, processes, mounts,
//	etcd           containerd     containerd       control groups: its own
//	API server     kubelet        kubelet
//	controllers    kube-proxy     kube-proxy
//	scheduler      pods 10.246.1  pods 10.246.2    services 10.98.0.0/16
//
//	kube up               build what is missing, start, wait until nodes are ready
//	kube down             end it; nothing is left but the programs
//	kube build            only build
//	kube load FILE …      import archives of images into every node
//	kube pack IMAGE PROGRAM [LINK …]
//	                      make an image of one static program, with more names for it; import it
//	kube exec NODE CMD …  run a command in a node (or in "control")
//	kube kubectl …        kubectl for this cluster
//	kube run COMMAND …    run a command of this machine that talks to this cluster: with KUBECONFIG
//	kube report DIR       print what is needed to find out why something fails; copy logs to DIR
//
// Each place is one tree of processes below `kube init PLACE`, the first process of
// its process namespace: when that ends, the kernel ends the rest. So a run that
// crashed is cleaned up by ending those, and `up` does it before it starts.
//
// PROXY_MODE (nftables, iptables) is kube-proxy's mode, CNI (bridge, ptp, flannel) what
// makes the pods' network, FAMILY (ipv4, dual, ipv6) which addresses pods and services
// have; CULVERT_KUBE is the folder of programs, images and state; CULVERT_KUBE_NUMBER (0 to 9) tells clusters apart that
// run beside each other, CULVERT_KUBE_NODES (2 to 9) is how many nodes this one has; both are
// the same for every verb. The programs are modules of their own, so that nothing
// of Kubernetes enters the product: kubernetes, node, runc, dns, flannel.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) && os.Args[1] != "up" {
			os.Exit(max(exit.ExitCode(), 1)) // it has said why itself
		}
		fmt.Fprintln(os.Stderr, "kube:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	l, err := theLayout()
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	verb := ""
	if len(args) > 0 {
		verb, args = args[0], args[1:]
	}
	switch {
	case verb == "up":
		return up(ctx, l)
	case verb == "down":
		return down(l)
	case verb == "build":
		return build(ctx, l)
	case verb == "load" && len(args) > 0:
		return load(ctx, l, args)
	case verb == "pack" && len(args) > 1:
		return packImage(ctx, l, args[0], args[1], args[2:])
	case verb == "run" && len(args) > 0:
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Env = append(os.Environ(), "KUBECONFIG="+l.kubeconfig("admin"))
		return attached(cmd)
	case verb == "report" && len(args) == 1:
		report(l, os.Stdout)
		return keep(l, args[0])
	case verb == "exec" && len(args) > 1:
		return inside(l, args[0], args[1:])
	case verb == "kubectl":
		cmd := exec.Command(l.bin("kubectl"), args...)
		cmd.Env = l.environment("KUBECONFIG=" + l.kubeconfig("admin"))
		return attached(cmd)
	case internal(l, verb, args):
		return nil
	}
	return errors.New("usage: kube up | down | build | load FILE… | pack IMAGE PROGRAM [LINK…] | exec NODE COMMAND… | kubectl … | run COMMAND… | report DIR")
}

// internal runs the steps that `up` runs in processes of their own, and reports
// whether it was one of them.
func internal(l layout, verb string, args []string) bool {
	var err error
	switch {
	case verb == "launch" && len(args) == 1:
		err = launch(l, args[0])
	case verb == "init" && len(args) == 2:
		err = initialize(l, args[0])
	default:
		return false
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "kube %s: %v\n", verb, err)
		os.Exit(1)
	}
	return true
}

// inside runs a command in a place, in all of its namespaces.
func inside(l layout, name string, command []string) error {
	cmd, err := enter(l, name, command...)
	if err != nil {
		return err
	}
	return attached(cmd)
}

// enter returns a command that will run in a place. It ends when we do.
func enter(l layout, name string, command ...string) (*exec.Cmd, error) {
	pid, err := firstProcess(l, name)
	if err != nil {
		return nil, err
	}
	args := append([]string{"--target", fmt.Sprint(pid), "--all", "setpriv", "--pdeathsig", "KILL"}, command...)
	cmd := exec.Command("nsenter", args...)
	cmd.Env = l.environment()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd, nil
}

func attached(cmd *exec.Cmd) error {
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd.Run()
}
