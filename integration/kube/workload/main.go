// Command workload is what the cluster's test pods run: a server that counts its
// probes, a client, and a process that does nothing. It stands in an image of its
// own, without a shell.
//
//	workload                 serve: HTTP and gRPC health on 8080, TCP echo on 9090
//	workload get URL [N]     print what N requests (default 1) bring; fail at the first bad one
//	workload hold ADDRESS    send a line every 100 ms through one connection, print what comes back
//	workload lookup NAME     print its addresses
//	workload token PATH      print a file
//	workload admit CERT KEY  a webhook on 8443: admits everything, and warns that it has; PEM
//	workload probe           what an exec probe runs: tells the server, and fails without it
//	workload pause           wait for the end
package main

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"
)

func main() {
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM, syscall.SIGINT)
	go func() { <-end; os.Exit(0) }() // the first process of a namespace has no default action
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "workload:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return serve()
	}
	subject := ""
	if len(args) > 1 {
		subject = args[1]
	}
	switch args[0] {
	case "pause":
		return pause()
	case "get":
		times := 1
		if len(args) > 2 {
			var err error
			if times, err = strconv.Atoi(args[2]); err != nil {
				return err
			}
		}
		return get(subject, times)
	case "hold":
		return hold(subject)
	case "lookup":
		addrs, err := net.LookupHost(subject)
		fmt.Println(addrs)
		return err
	case "token":
		content, err := os.ReadFile(subject)
		os.Stdout.Write(content)
		return err
	case "admit":
		if len(args) < 3 {
			return fmt.Errorf("admit: want a certificate and a key")
		}
		return admit(args[1], args[2])
	case "probe":
		return get("http://127.0.0.1:8080/probe/exec", 1)
	}
	return fmt.Errorf("no such verb: %q", args[0])
}

// pause also takes in what becomes of orphans, as the first process of a pod that
// shares its process namespace has to.
func pause() error {
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	for range children {
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
	}
	return nil
}

// counts is how often the server was asked for each path.
type counts struct {
	mu sync.Mutex
	of map[string]int
}

func (c *counts) add(path string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.of[path]++
}

// ServeHTTP tells the counts.
func (c *counts) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	json.NewEncoder(w).Encode(c.of)
}

func serve() error {
	c := &counts{of: map[string]int{}}
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("/counts", c)
	mux.HandleFunc("/grpc.health.v1.Health/Check", func(w http.ResponseWriter, _ *http.Request) {
		c.add("grpc")
		healthy(w)
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		c.add(r.URL.Path)
		fmt.Fprintf(w, "%s saw %s\n", host, r.RemoteAddr)
	})
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	l, err := net.Listen("tcp", ":9090")
	if err != nil {
		return err
	}
	go echo(l, c)
	return (&http.Server{Addr: ":8080", Handler: mux, Protocols: protocols}).ListenAndServe()
}

// healthy answers a gRPC health check: a message without compression, field 1
// (status) = 1 (serving), and the call's status in the trailer.
func healthy(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/grpc")
	w.Header().Set("Trailer", "Grpc-Status")
	w.Write([]byte{0, 0, 0, 0, 2, 1 << 3, 1})
	w.Header().Set("Grpc-Status", "0")
}

// echo sends back what it gets. What connects and says nothing is a probe.
func echo(l net.Listener, c *counts) {
	for {
		conn, err := l.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go func() {
			defer conn.Close()
			if n, _ := io.Copy(conn, conn); n == 0 {
				c.add("tcp")
			}
		}()
	}
}

// admit answers reviews of admission.k8s.io/v1.
func admit(cert, key string) error {
	pair, err := tls.X509KeyPair([]byte(cert), []byte(key))
	if err != nil {
		return err
	}
	review := func(w http.ResponseWriter, r *http.Request) {
		var asked struct{ Request struct{ UID string } }
		if err := json.NewDecoder(r.Body).Decode(&asked); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(map[string]any{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": map[string]any{
			"uid": asked.Request.UID, "allowed": true, "warnings": []string{"seen by the webhook"}}})
	}
	srv := &http.Server{Addr: ":8443", Handler: http.HandlerFunc(review), TLSConfig: &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}}
	return srv.ListenAndServeTLS("", "")
}

// answerLimit is far beyond what an answer takes on a busy machine: what is lost is
// never answered.
const answerLimit = 20 * time.Second

func get(url string, times int) error {
	client := &http.Client{Timeout: answerLimit, Transport: &http.Transport{DisableKeepAlives: true}}
	for range times {
		resp, err := client.Get(url)
		if err != nil {
			return err
		}
		_, err = io.Copy(os.Stdout, resp.Body)
		resp.Body.Close()
		if err != nil {
			return err
		}
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("get %s: %s", url, resp.Status)
		}
	}
	return nil
}

func hold(address string) error {
	var conn net.Conn
	for try := 0; ; try++ { // the server may start later than we do
		var err error
		if conn, err = net.DialTimeout("tcp", address, 2*time.Second); err == nil {
			break
		}
		if try == 100 {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
	lines := bufio.NewReader(conn)
	for n := 0; ; n++ {
		if _, err := fmt.Fprintf(conn, "line %d\n", n); err != nil {
			return err
		}
		line, err := lines.ReadString('\n')
		if err != nil {
			return err
		}
		fmt.Print(line)
		time.Sleep(100 * time.Millisecond)
	}
}
