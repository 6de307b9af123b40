// Command protogen turns the .proto files below pkg/wire into Go.
//
//	*.proto ── protocompile ──► descriptors ──► protoc-gen-go, protoc-gen-go-grpc ──► *.pb.go
//
// It needs nothing but Go: the compiler is a library, the plugins are tools that
// this module's go.mod pins. The same inputs give the same bytes, so that CI can
// check that the committed files are current.
//
//	cd pkg/wire/protogen && go run . ..
package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"github.com/bufbuild/protocompile"
	"github.com/bufbuild/protocompile/linker"
	"github.com/bufbuild/protocompile/protoutil"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"
)

// prefix is put before the files' paths, so that the names under which they are
// registered in a program are ours alone.
const prefix = "pkg/wire"

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: protogen DIR")
		os.Exit(2)
	}
	if err := generate(context.Background(), os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "protogen:", err)
		os.Exit(1)
	}
}

// generate compiles dir/*/*.proto and writes the results beside them.
func generate(ctx context.Context, dir string) error {
	paths, err := filepath.Glob(filepath.Join(dir, "*", "*.proto"))
	if err != nil {
		return err
	}
	slices.Sort(paths)
	for _, path := range paths {
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if err := generateFile(ctx, dir, filepath.ToSlash(rel)); err != nil {
			return fmt.Errorf("%s: %w", rel, err)
		}
	}
	return nil
}

func generateFile(ctx context.Context, dir, rel string) error {
	name := prefix + "/" + rel
	source, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(rel)))
	if err != nil {
		return err
	}
	compiler := protocompile.Compiler{
		Resolver: protocompile.WithStandardImports(&protocompile.SourceResolver{
			Accessor: protocompile.SourceAccessorFromMap(map[string]string{name: string(source)}),
		}),
		SourceInfoMode: protocompile.SourceInfoStandard,
	}
	files, err := compiler.Compile(ctx, name)
	if err != nil {
		return err
	}
	request := request(name, files)
	plugins := []string{"protoc-gen-go"}
	if files[0].Services().Len() > 0 {
		plugins = append(plugins, "protoc-gen-go-grpc")
	}
	for _, plugin := range plugins {
		if err := runPlugin(ctx, plugin, request, dir); err != nil {
			return fmt.Errorf("%s: %w", plugin, err)
		}
	}
	return nil
}

// request lists the file after everything that it imports, as plugins expect.
func request(name string, files linker.Files) *pluginpb.CodeGeneratorRequest {
	r := &pluginpb.CodeGeneratorRequest{
		FileToGenerate: []string{name},
		Parameter:      proto.String("paths=source_relative"),
	}
	seen := map[string]bool{}
	for _, f := range files {
		r.ProtoFile = appendFile(r.ProtoFile, seen, f)
	}
	return r
}

func appendFile(out []*descriptorpb.FileDescriptorProto, seen map[string]bool, f protoreflect.FileDescriptor) []*descriptorpb.FileDescriptorProto {
	if seen[f.Path()] {
		return out
	}
	seen[f.Path()] = true
	for i := range f.Imports().Len() {
		out = appendFile(out, seen, f.Imports().Get(i).FileDescriptor)
	}
	return append(out, protoutil.ProtoFromFileDescriptor(f))
}

// runPlugin feeds the request to a plugin and writes the files that it answers.
func runPlugin(ctx context.Context, plugin string, request *pluginpb.CodeGeneratorRequest, dir string) error {
	in, err := proto.MarshalOptions{Deterministic: true}.Marshal(request)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, "go", "tool", plugin)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), &out, os.Stderr
	if err := cmd.Run(); err != nil {
		return err
	}
	var response pluginpb.CodeGeneratorResponse
	if err := proto.Unmarshal(out.Bytes(), &response); err != nil {
		return err
	}
	if response.Error != nil {
		return fmt.Errorf("%s", response.GetError())
	}
	for _, f := range response.File {
		rel, err := filepath.Rel(prefix, f.GetName())
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, rel), []byte(f.GetContent()), 0o644); err != nil {
			return err
		}
	}
	return nil
}
