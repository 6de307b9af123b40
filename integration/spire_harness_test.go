//go:build spire

package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/pkg/run/runtest"
)

// long bounds what waits for certificates to be renewed or to end.
const long = 3 * time.Minute

// programs of SPIRE, and ours, as CULVERT_SPIRE and CULVERT_BIN name their folders.
func program(t testing.TB, folder, name string) string {
	t.Helper()
	path := filepath.Join(os.Getenv(folder), name)
	if _, err := os.Stat(path); os.Getenv(folder) == "" || err != nil {
		t.Fatalf("%s: set %s to the folder of %s; `make test-spire` does", path, folder, name)
	}
	return path
}

// daemon is a running SPIRE server or agent.
type daemon struct {
	t    testing.TB
	cmd  *exec.Cmd
	log  runtest.Buffer
	done chan struct{}
}

func daemonOf(t testing.TB, path string, args ...string) *daemon {
	t.Helper()
	d := &daemon{t: t, cmd: exec.Command(path, args...), done: make(chan struct{})}
	d.cmd.Stdout, d.cmd.Stderr = &d.log, &d.log
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go d.wait()
	return d
}

func (d *daemon) wait() {
	_ = d.cmd.Wait()
	close(d.done)
}

func (d *daemon) kill() {
	_ = d.cmd.Process.Kill()
	<-d.done
}

// spireServer is the server of one trust domain.
type spireServer struct {
	t      testing.TB
	domain string
	dir    string
	port   int
	daemon *daemon
}

func newSpireServer(t testing.TB, domain string) *spireServer {
	t.Helper()
	s := &spireServer{t: t, domain: domain, dir: shortDir(t), port: freePort(t)}
	config := s.write("server.conf", fmt.Sprintf(`server {
  bind_address = "127.0.0.1"
  bind_port = "%d"
  socket_path = "%[2]s/server.sock"
  trust_domain = "%[3]s"
  data_dir = "%[2]s"
  log_level = "INFO"
  ca_ttl = "1h"
}
plugins {
  DataStore "sql" { plugin_data { database_type = "sqlite3", connection_string = "%[2]s/db.sqlite3" } }
  NodeAttestor "join_token" { plugin_data {} }
  KeyManager "memory" { plugin_data {} }
}
`, s.port, s.dir, domain))
	s.daemon = daemonOf(t, program(t, "CULVERT_SPIRE", "spire-server"), "run", "-config", config)
	t.Cleanup(func() {
		s.daemon.kill()
		if t.Failed() {
			t.Logf("SPIRE server of %s:\n%s", domain, &s.daemon.log)
		}
	})
	eventually(t, "the SPIRE server", func() bool { _, err := s.try("healthcheck"); return err == nil })
	return s
}

// shortDir is a folder whose name leaves room for a socket's.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "spire")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func (s *spireServer) write(name, text string) string {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// try calls the server's command line.
func (s *spireServer) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	args = append(args, "-socketPath", filepath.Join(s.dir, "server.sock"))
	out, err := exec.CommandContext(ctx, program(s.t, "CULVERT_SPIRE", "spire-server"), args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("spire-server %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return string(out), err
}

func (s *spireServer) do(args ...string) string {
	s.t.Helper()
	out, err := s.try(args...)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

func (s *spireServer) id(path string) string { return "spiffe://" + s.domain + path }

// workload registers a service account of namespace default on a node, and returns
// the entry's name.
func (s *spireServer) workload(node, account string, ttl time.Duration, more ...string) string {
	s.t.Helper()
	return s.entry(append([]string{"-parentID", s.id("/" + node), "-spiffeID", s.id("/ns/default/sa/" + account),
		"-selector", "k8s:ns:default", "-selector", "k8s:sa:" + account, "-x509SVIDTTL", fmt.Sprint(int(ttl.Seconds()))}, more...)...)
}

func (s *spireServer) entry(args ...string) string {
	s.t.Helper()
	var out struct {
		Results []struct {
			Status struct{ Message string }
			Entry  struct{ ID string }
		}
	}
	text := s.do(append([]string{"entry", "create", "-output", "json"}, args...)...)
	if err := json.Unmarshal([]byte(text), &out); err != nil || len(out.Results) != 1 || out.Results[0].Entry.ID == "" {
		s.t.Fatalf("entry: %v in %s", err, text)
	}
	return out.Results[0].Entry.ID
}

// trust makes s know the present bundle of another domain.
func (s *spireServer) trust(other *spireServer) {
	s.t.Helper()
	bundle := s.write(other.domain, other.do("bundle", "show", "-format", "spiffe"))
	s.do("bundle", "set", "-format", "spiffe", "-id", other.id(""), "-path", bundle)
}

// spireAgent is the agent of a node.
type spireAgent struct {
	t               testing.TB
	config          string
	admin, workload string // sockets
	daemon          *daemon
}

// ztunnelPath is ztunnel's own identity, which may speak for the pods.
const ztunnelPath = "/ns/istio-system/sa/ztunnel"

func (s *spireServer) agent(node string) *spireAgent {
	s.t.Helper()
	var token struct{ Value string }
	text := s.do("token", "generate", "-spiffeID", s.id("/"+node), "-output", "json")
	if err := json.Unmarshal([]byte(text), &token); err != nil || token.Value == "" {
		s.t.Fatalf("token: %v in %s", err, text)
	}
	dir := filepath.Join(s.dir, node)
	for _, sub := range []string{"public", "admin", "data"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			s.t.Fatal(err)
		}
	}
	a := &spireAgent{t: s.t, admin: dir + "/admin/api.sock", workload: dir + "/public/api.sock"}
	bundle := s.write(node+".pem", s.do("bundle", "show"))
	a.config = s.write(node+".conf", fmt.Sprintf(`agent {
  data_dir = "%s/data"
  log_level = "INFO"
  server_address = "127.0.0.1"
  server_port = "%d"
  socket_path = %q
  admin_socket_path = %q
  authorized_delegates = [ %q ]
  trust_bundle_path = %q
  trust_domain = %q
  join_token = %q
  experimental { sync_interval = "1s" }
}
plugins {
  NodeAttestor "join_token" { plugin_data {} }
  KeyManager "disk" { plugin_data { directory = "%[1]s/data" } }
  WorkloadAttestor "unix" { plugin_data {} }
}
`, dir, s.port, a.workload, a.admin, s.id(ztunnelPath), bundle, s.domain, token.Value))
	s.entry("-parentID", s.id("/"+node), "-spiffeID", s.id(ztunnelPath), "-selector", "unix:uid:0")
	a.start()
	s.t.Cleanup(func() {
		a.daemon.kill()
		if s.t.Failed() {
			s.t.Logf("SPIRE agent of %s:\n%s", node, &a.daemon.log)
		}
	})
	return a
}

func (a *spireAgent) start() {
	a.t.Helper()
	a.daemon = daemonOf(a.t, program(a.t, "CULVERT_SPIRE", "spire-agent"), "run", "-config", a.config)
	eventually(a.t, "the SPIRE agent", func() bool {
		c, err := net.Dial("unix", a.admin)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

// environ makes a ztunnel ask this agent.
func (a *spireAgent) environ(domain string) []string {
	return []string{"FAKE_CA=false", "SPIRE_ADMIN_SOCKET=" + a.admin, "SPIFFE_ENDPOINT_SOCKET=unix://" + a.workload,
		"TRUST_DOMAIN=" + domain}
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(long)
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// certificate is what a ztunnel's config dump tells of an identity.
type certificate struct {
	Identity, State string
	CertChain       []struct{ SerialNumber string }
	RootCerts       []struct{ SerialNumber string }
}

func (z *ztunnel) certificate(identity string) (certificate, error) {
	var dump struct{ Certificates []certificate }
	if err := json.Unmarshal([]byte(z.get("http://127.0.0.1:15000/config_dump")), &dump); err != nil {
		return certificate{}, err
	}
	for _, c := range dump.Certificates {
		if c.Identity == identity {
			return c, nil
		}
	}
	return certificate{}, errors.New("not held")
}

// serial waits until the ztunnel holds a certificate for identity that is not one
// of the given, and returns its serial number.
func (z *ztunnel) serial(identity string, not ...string) (serial string) {
	z.t.Helper()
	eventually(z.t, "another certificate of "+identity, func() bool {
		c, err := z.certificate(identity)
		if err != nil || c.State != "Available" {
			return false
		}
		serial = c.CertChain[0].SerialNumber
		for _, old := range not {
			if serial == old {
				return false
			}
		}
		return true
	})
	return serial
}
