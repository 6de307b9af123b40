// Command tiny stands for each of the mesh's programs where their images are tested.
package main

import _ "golang.org/x/sys/unix" // a module that the documents name

func main() {}
