// Package h2 carries HBONE tunnels over HTTP/2.
package h2
