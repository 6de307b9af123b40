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
	c := &cobra.Command{Use: "certs", Short: "Show the identities that each proxy holds certificates for", Args: cobra.NoArgs}
	from, out := readerFlagsOf(e, c), outputFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		client, err := from.open(c.Context())
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

func printCerts(w io.Writer, nodes []laptop.HeldCerts) error {
	var rows [][]string
	for _, n := range nodes {
		if n.Error != "" {
			rows = append(rows, []string{n.Node, n.Proxy, "unknown: " + n.Error, "", "", ""})
			continue
		}
		held := []heldCert{}
		if len(n.Certificates) == 0 {
			continue
		}
		if err := json.Unmarshal(n.Certificates, &held); err != nil {
			return fmt.Errorf("certificates of %s: %w", n.Node, err)
		}
		for _, h := range held {
			serial, valid := "", ""
			if len(h.CertChain) > 0 {
				leaf := h.CertChain[0]
				serial = leaf.SerialNumber
				valid = leaf.ValidFrom.UTC().Format(time.RFC3339) + " – " + leaf.ExpirationTime.UTC().Format(time.RFC3339)
			}
			state, _, _ := strings.Cut(h.State, "\n")
			rows = append(rows, []string{n.Node, n.Proxy, h.Identity, state, serial, valid})
		}
	}
	return table(w, "NODE PROXY IDENTITY STATE SERIAL VALID", rows)
}
