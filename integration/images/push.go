package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// push is the verb of this name: every named image of a layout goes to the hub,
// and after it what refers to it.
func push(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("images push", flag.ContinueOnError)
	dir := flags.String("layout", "bin/images/layout", "layout to push")
	hub := flags.String("hub", "", "registry and path to push to, as HOST[:PORT]/PATH")
	tag := flags.String("tag", "", "tag to push as; without it the images keep theirs")
	insecure := flags.Bool("insecure", false, "speak to the registry without TLS when it has none")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *hub == "" {
		return fmt.Errorf("push: -hub is needed: the registry and path to push to")
	}
	p, err := layout.FromPath(*dir)
	if err != nil {
		return fmt.Errorf("push: %w (`make images` makes a layout)", err)
	}
	index, err := p.ImageIndex()
	if err != nil {
		return err
	}
	all, err := index.IndexManifest()
	if err != nil {
		return err
	}
	var options []name.Option
	if *insecure {
		options = append(options, name.Insecure)
	}
	for _, d := range all.Manifests {
		have, ok := d.Annotations[nameForOthers]
		if !ok {
			continue
		}
		ref, err := name.NewTag(target(have, *hub, *tag), options...)
		if err != nil {
			return err
		}
		if err := pushOne(ctx, p, index, d, ref); err != nil {
			return fmt.Errorf("push %s: %w", ref, err)
		}
		fmt.Fprintf(out, "%s@%s\n", ref, d.Digest)
	}
	return nil
}

// target is the name that an image gets in another hub.
func target(have, hub, tag string) string {
	last := have[strings.LastIndex(have, "/")+1:]
	image, old, _ := strings.Cut(last, ":")
	if tag == "" {
		tag = old
	}
	return strings.TrimSuffix(hub, "/") + "/" + image + ":" + tag
}

// lastElement is an image's own name, without hub and tag.
func lastElement(full string) string {
	image, _, _ := strings.Cut(full[strings.LastIndex(full, "/")+1:], ":")
	return image
}

func pushOne(ctx context.Context, p layout.Path, index v1.ImageIndex, d v1.Descriptor, ref name.Tag) error {
	options := []remote.Option{remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain)}
	image, err := index.ImageIndex(d.Digest)
	if err != nil {
		return err
	}
	if err := remote.WriteIndex(ref, image, options...); err != nil {
		return err
	}
	referrers, err := referrersOf(p, d)
	if err != nil {
		return err
	}
	for _, r := range referrers {
		artifact, err := p.Image(r.Digest)
		if err != nil {
			return err
		}
		if err := remote.Write(ref.Context().Digest(r.Digest.String()), artifact, options...); err != nil {
			return fmt.Errorf("document of %s: %w", r.Digest, err)
		}
	}
	return nil
}
