//go:build kube

package installed

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
)

// names are what a script calls things, and what they are called on the cluster: its
// namespaces are its own there, so that scripts run beside each other.
//
//	app/client    app-policy-3f2a/client       10.96.7.7       10.101.7.7
//	node-1        node1                        agent-node-1    culvert-cni-node1
type names struct {
	suffix string   // of the script's namespaces
	spaces []string // as the script calls them
}

// number is the cluster's, which its addresses depend on.
func number() int {
	n, _ := strconv.Atoi(os.Getenv("CULVERT_KUBE_NUMBER"))
	return n
}

func servicePrefix() string { return fmt.Sprintf("10.%d", 98+number()) }
func podPrefix() string     { return fmt.Sprintf("10.%d", 246+number()) }

var (
	scriptNode  = regexp.MustCompile(`\bnode-(\d)\b`)
	clusterNode = regexp.MustCompile(`\bnode(\d)\b`)
	replica     = regexp.MustCompile(`\bculvert-controlplane-[0-9a-z]+-[0-9a-z]{5}\b`)
)

// there turns a script's words into those of the cluster: "web.app", "app/web" and
// "ns/app/sa/x" have a namespace in them, "app" alone has not.
func (n names) there(text string) string {
	text = strings.ReplaceAll(scriptNode.ReplaceAllString(text, "node$1"), "10.96.", servicePrefix()+".")
	text = strings.ReplaceAll(text, "agent-node", "culvert-cni-node")
	for _, s := range n.spaces {
		text = regexp.MustCompile(`([./])`+s+`([./:]|$)`).ReplaceAllString(text, "${1}"+s+n.suffix+"${2}")
		text = regexp.MustCompile(`(^|[ ])`+s+`/`).ReplaceAllString(text, "${1}"+s+n.suffix+"/")
	}
	return text
}

// here turns the cluster's words into the script's.
func (n names) here(text string) string {
	for _, s := range n.spaces {
		text = strings.ReplaceAll(text, s+n.suffix, s)
	}
	text = clusterNode.ReplaceAllString(text, "node-$1")
	text = strings.ReplaceAll(text, "culvert-cni-node-", "agent-node-")
	return replica.ReplaceAllString(text, "controlplane")
}

// space is the cluster's name of a namespace; others than the script's stay.
func (n names) space(name string) string {
	for _, s := range n.spaces {
		if s == name {
			return s + n.suffix
		}
	}
	return name
}
