package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

func (a *app) unregisterCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "unregister NAME…",
		Short:             "Remove definitions of services that do not run",
		Args:              someNames,
		ValidArgsFunction: a.completeNames,
		RunE: func(cmd *cobra.Command, names []string) error {
			return each(cmd.Context(), a, names, answers[*gladsheimv1.Definition]{
				ask: func(ctx context.Context, name string) (*gladsheimv1.Definition, error) {
					ctx, cancel := a.question(ctx)
					defer cancel()
					return a.client.Unregister(ctx, &gladsheimv1.UnregisterRequest{ServiceName: name})
				},
				show: func(d *gladsheimv1.Definition) error {
					_, err := fmt.Fprintf(a.out, "- %s removed\n", plain(d.GetServiceName()))
					return err
				},
			})
		},
	}
}
