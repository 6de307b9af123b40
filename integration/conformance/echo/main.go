// Command echo stands in for the image that Gateway API's conformance suite calls
// echo-advanced: the workload of its mesh tests, as server and, called by the name
// of "client", as the client that the suite runs in the server's container.
//
//	echo --port=8080 --grpc=7070 --tcp=9090 --port=8443 --tls=8443 --crt=FILE --key=FILE
//	client URL [--method=M] [-H NAME:VALUE]… [--count=N]
//
// Ports of --port speak HTTP/1.1 and HTTP/2, with TLS those of --tls; without the
// certificate's files it makes one for itself. What the server says of a request,
// a line of KEY=VALUE for each fact, is what the suite reads from the client's
// output.
package main

import (
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	var err error
	if filepath.Base(os.Args[0]) == "client" {
		err = call(os.Args[1:], os.Stdout)
	} else {
		err = serve(os.Args[1:])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "echo:", err)
		os.Exit(1)
	}
}
