package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

func (a *app) registerCommand() *cobra.Command {
	var files []string
	var replace bool
	c := &cobra.Command{
		Use:   "register -f FILE…",
		Short: "Register the definitions in files, - for stdin; of several all, or none",
		Example: `  gladsheim register -f web.json
  gladsheim register -f web.json -f db.json
  generate-definition | gladsheim register -f -`,
	}
	c.Flags().StringArrayVarP(&files, "file", "f", nil, "a `file` with a definition; may be given again")
	c.Flags().BoolVar(&replace, "replace", false, "replace a definition of the same name")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		if len(files) == 0 {
			return usage(errors.New("cannot tell what to register; write it as in: gladsheim register -f web.json"))
		}
		if err := a.connect(); err != nil {
			return err
		}
		if len(files) > 1 {
			return a.registerTogether(cmd.Context(), files, replace)
		}
		return a.register(cmd.Context(), files[0], replace)
	}
	return c
}

func (a *app) register(ctx context.Context, file string, replace bool) error {
	document, name, err := a.readFile(ctx, file)
	if err != nil {
		return err
	}
	ctx, cancel := a.question(ctx)
	defer cancel()
	r, err := a.client.Register(ctx, &gladsheimv1.RegisterRequest{Definition: document, File: name, Replace: replace})
	if err != nil {
		return err
	}
	return a.present(r, func() error { return a.showChange(r.GetChange()) })
}

// registerTogether registers several definitions at once: they may name each other.
func (a *app) registerTogether(ctx context.Context, files []string, replace bool) error {
	req := &gladsheimv1.ApplyRequest{Replace: &replace}
	if err := a.readFiles(ctx, req, "register", files); err != nil {
		return err
	}
	ctx, cancel := a.question(ctx)
	defer cancel()
	r, err := a.client.Apply(ctx, req)
	if err != nil {
		return err
	}
	for _, c := range r.GetChanges() {
		one := &gladsheimv1.RegisterResponse{Change: c}
		if a.machine() {
			if one.Definition, err = a.client.GetDefinition(ctx, &gladsheimv1.GetDefinitionRequest{ServiceName: c.GetServiceName()}); err != nil {
				return err
			}
		}
		if err := a.present(one, func() error { return a.showChange(c) }); err != nil {
			return err
		}
	}
	return nil
}

// readFiles reads what is to be sent at once; op is what it is sent for.
func (a *app) readFiles(ctx context.Context, req *gladsheimv1.ApplyRequest, op string, files []string) error {
	for _, file := range files {
		content, name, err := a.readFile(ctx, file)
		if err != nil {
			return err
		}
		req.Files = append(req.Files, &gladsheimv1.DefinitionFile{Name: name, Content: content})
	}
	if size := proto.Size(req); size > maxDefinition {
		return fmt.Errorf("cannot %s %s at once: they have %s, and the agent takes %s; %[1]s them in parts",
			op, plural(len(files), "definition"), bytesOf(uint64(size)), bytesOf(uint64(maxDefinition)))
	}
	return nil
}

// maxDefinition is as much as the agent takes at once, in bytes.
const maxDefinition = 1 << 20

// readFile reads a file, or stdin for -, and says what to call it. Nobody can be
// kept from leaving by a stdin that does not end, or a pipe that nobody writes.
func (a *app) readFile(ctx context.Context, path string) (content []byte, name string, err error) {
	name = path
	if path == "-" {
		name = "stdin"
	}
	type result struct {
		content []byte
		err     error
	}
	read := make(chan result, 1)
	go func() {
		content, err := a.read(path)
		read <- result{content, err}
	}()
	select {
	case <-ctx.Done():
		return nil, "", ctx.Err()
	case r := <-read:
		switch {
		case r.err != nil:
			return nil, "", fmt.Errorf("cannot read the definition: %w", r.err)
		case len(r.content) > maxDefinition:
			return nil, "", &failure{exitInvalid, fmt.Errorf("cannot take %s: it has more than %d bytes", name, maxDefinition)}
		}
		return r.content, name, nil
	}
}

// read reads a file, or stdin for -, and no more than shows that it is too big.
func (a *app) read(path string) ([]byte, error) {
	source := a.in
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		source = f
	}
	return io.ReadAll(io.LimitReader(source, maxDefinition+1))
}

// showChange shows what became of a definition, in a line.
func (a *app) showChange(c *gladsheimv1.DefinitionChange) error {
	mark := map[gladsheimv1.DefinitionChange_Action]string{
		gladsheimv1.DefinitionChange_ACTION_ADDED: "+", gladsheimv1.DefinitionChange_ACTION_CHANGED: "~",
		gladsheimv1.DefinitionChange_ACTION_UNCHANGED: "=", gladsheimv1.DefinitionChange_ACTION_REMOVED: "-",
	}[c.GetAction()]
	line := fmt.Sprintf("%s %s %s", mark, c.GetServiceName(), word(c.GetAction(), "ACTION_"))
	if fields := c.GetFields(); len(fields) > 0 {
		line += ": " + strings.Join(fields, ", ")
	}
	if c.GetAction() == gladsheimv1.DefinitionChange_ACTION_CHANGED {
		switch c.GetEffect() {
		case gladsheimv1.DefinitionChange_EFFECT_LIVE:
			line += " (in effect)"
		case gladsheimv1.DefinitionChange_EFFECT_NEXT_START:
			line += " (from the next start)"
		}
	}
	_, err := fmt.Fprintln(a.out, plain(line))
	return err
}
