package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// load imports archives of images into the containerd of every node, at once.
func load(ctx context.Context, l layout, files []string) error {
	errs := make([]error, len(nodes))
	var all sync.WaitGroup
	for i, n := range nodes {
		all.Go(func() {
			for _, f := range files {
				if errs[i] = loadInto(l, n, f); errs[i] != nil || ctx.Err() != nil {
					return
				}
			}
		})
	}
	all.Wait()
	return errors.Join(append(errs, ctx.Err())...)
}

// packImage makes an image of one static program, which also gets the names in links,
// and loads it into every node. What follows the program's path are its first arguments.
func packImage(ctx context.Context, l layout, image, program string, links []string) error {
	dir, err := os.MkdirTemp("", "kube-pack-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "image.tar")
	program, args, _ := strings.Cut(program, " ")
	if err := writeImage(file, image, "/"+filepath.Base(program)+" "+args, program, links...); err != nil {
		return err
	}
	return load(ctx, l, []string{file})
}

func loadInto(l layout, node, file string) error {
	file, err := filepath.Abs(file)
	if err != nil {
		return err
	}
	cmd, err := enter(l, node, importing(file)...)
	if err != nil {
		return err
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("import %s into %s: %w: %s", file, node, err, out)
	}
	return nil
}

// importing is the command that imports an archive where the kubelet sees it. With
// --local it is unpacked by ctr itself, so that it is there at once.
func importing(file string) []string {
	return []string{"ctr", "-n", "k8s.io", "images", "import", "--local", file}
}
