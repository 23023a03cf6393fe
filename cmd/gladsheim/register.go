package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

func (a *app) registerCommand() *cobra.Command {
	var files []string
	var replace bool
	c := &cobra.Command{
		Use:   "register -f FILE…",
		Short: "Register the definitions in files, - for stdin",
		Example: `  gladsheim register -f web.json
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
		worst := exitOK
		for _, file := range files { // one after the other: the latter may need the former
			if err := a.register(cmd, file, replace); err != nil {
				if cmd.Context().Err() != nil {
					return err
				}
				a.complain(err)
				worst = max(worst, a.code(err))
			}
		}
		return worstOf(worst)
	}
	return c
}

func (a *app) register(cmd *cobra.Command, file string, replace bool) error {
	document, name, err := a.readFile(cmd.Context(), file)
	if err != nil {
		return err
	}
	ctx, cancel := a.question(cmd.Context())
	defer cancel()
	r, err := a.client.Register(ctx, &gladsheimv1.RegisterRequest{Definition: document, File: name, Replace: replace})
	if err != nil {
		return err
	}
	return a.present(r, func() error { return a.showChange(r.GetChange()) })
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
