// Command pack writes every chart with its dependencies as an archive, for
// `helm install` and `helm push`.
//
//	charts/{base,…,culvert}/ ──▶ FOLDER/{base,…,culvert}-VERSION.tgz
package main

import (
	"fmt"
	"os"

	"github.com/culvert-mesh/culvert/charts"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: pack FOLDER")
		os.Exit(2)
	}
	if err := os.MkdirAll(os.Args[1], 0o755); err != nil {
		fmt.Fprintln(os.Stderr, "pack:", err)
		os.Exit(1)
	}
	for _, name := range charts.Names() {
		path, err := charts.Pack(name, os.Args[1])
		if err != nil {
			fmt.Fprintln(os.Stderr, "pack:", err)
			os.Exit(1)
		}
		fmt.Println(path)
	}
}
