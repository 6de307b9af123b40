// Command culvert-cni is the chained CNI plugin of the mesh. Container runtimes
// run it; see package plugin.
package main

import (
	"os"

	"github.com/culvert-mesh/culvert/cni-plugin/plugin"
)

func main() { os.Exit(plugin.Main()) }
