package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/cli/laptop"
)

func certsCommand(e *env) *cobra.Command {
	c := &cobra.Command{Use: "certs", Short: "Show the identities that each node's ztunnel holds certificates for", Args: cobra.NoArgs}
	name, out := nameFlag(e, c), outputFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		client, err := laptop.NewClient(*name)
		if err != nil {
			return err
		}
		nodes, err := client.Certs(c.Context())
		if err != nil {
			return err
		}
		return out.write(e.stdout, nodes, func(w io.Writer) error { return printCerts(w, nodes) })
	}
	return c
}

// heldCert is one entry of a ztunnel's certificates, ours or upstream's.
type heldCert struct {
	Identity  string `json:"identity"`
	State     string `json:"state"`
	CertChain []struct {
		SerialNumber   string    `json:"serialNumber"`
		ValidFrom      time.Time `json:"validFrom"`
		ExpirationTime time.Time `json:"expirationTime"`
	} `json:"certChain"`
}

func printCerts(w io.Writer, nodes []laptop.NodeCerts) error {
	var rows [][]string
	for _, n := range nodes {
		if n.Error != "" {
			rows = append(rows, []string{n.Node, "unknown: " + n.Error, "", "", ""})
			continue
		}
		var held []heldCert
		if err := json.Unmarshal(n.Certificates, &held); err != nil {
			return fmt.Errorf("certificates of %s: %w", n.Node, err)
		}
		for _, h := range held {
			serial, from, until := "", "", ""
			if len(h.CertChain) > 0 {
				leaf := h.CertChain[0]
				serial, from, until = leaf.SerialNumber, leaf.ValidFrom.Local().Format(time.DateTime), leaf.ExpirationTime.Local().Format(time.DateTime)
			}
			state, _, _ := strings.Cut(h.State, "\n")
			rows = append(rows, []string{n.Node, h.Identity, state, serial, strings.ReplaceAll(from, " ", "T") + " – " + strings.ReplaceAll(until, " ", "T")})
		}
	}
	return table(w, "NODE IDENTITY STATE SERIAL VALID", rows)
}
