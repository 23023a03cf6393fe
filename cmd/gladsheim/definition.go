package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

func (a *app) definitionCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "definition NAME…",
		Short:             "Show the definition of services, as it was registered",
		Args:              someNames,
		ValidArgsFunction: a.completeNames,
		RunE: func(cmd *cobra.Command, names []string) error {
			return each(cmd.Context(), a, names, answers[*gladsheimv1.Definition]{
				ask: func(ctx context.Context, name string) (*gladsheimv1.Definition, error) {
					ctx, cancel := a.question(ctx)
					defer cancel()
					d, err := a.client.GetDefinition(ctx, &gladsheimv1.GetDefinitionRequest{ServiceName: name})
					if err == nil && d.GetJson() == "" {
						err = &failure{exitNotFound, fmt.Errorf("cannot show the definition of %s: it is lost; the service goes on as it was started, until it is registered anew or stopped", name)}
					}
					return d, err
				},
				show: func(d *gladsheimv1.Definition) error { return a.showDocument(d.GetJson()) },
			})
		},
	}
}

// showDocument prints a document of many lines, harmless on a terminal.
func (a *app) showDocument(text string) error {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	if a.terminal {
		for i := range lines {
			lines[i] = plain(lines[i])
		}
	}
	_, err := fmt.Fprintln(a.out, strings.Join(lines, "\n"))
	return err
}
