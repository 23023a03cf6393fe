package main

import (
	"context"

	"github.com/spf13/cobra"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

func (a *app) killCommand() *cobra.Command {
	var id string
	c := &cobra.Command{
		Use:               "kill NAME…",
		Short:             "End services at once, with everything they started",
		Args:              someNames,
		ValidArgsFunction: a.completeNames,
		RunE: func(cmd *cobra.Command, names []string) error {
			return each(cmd.Context(), a, names, a.states(func(ctx context.Context, name string) (*gladsheimv1.ServiceStatus, error) {
				ctx, cancel := a.deed(ctx)
				defer cancel()
				return a.client.Kill(ctx, &gladsheimv1.KillRequest{ServiceName: name, RequestId: id})
			}))
		},
	}
	requestIDFlag(c, &id)
	return c
}
