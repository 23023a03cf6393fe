package main

import (
	"context"

	"github.com/spf13/cobra"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

func (a *app) reloadCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "reload NAME…",
		Short: "Have running services read their configuration anew",
		Long: `Have running services read their configuration anew, in the way that their
definitions say ("reload"): by a signal, or by a program, whose failure is told with
what it wrote.

It is their own configuration: that of the agent is read anew by a SIGHUP to it.`,
		Args:              someNames,
		ValidArgsFunction: a.completeNames,
		RunE: func(cmd *cobra.Command, names []string) error {
			return each(cmd.Context(), a, names, a.states(func(ctx context.Context, name string) (*gladsheimv1.ServiceStatus, error) {
				ctx, cancel := a.deed(ctx)
				defer cancel()
				return a.client.Reload(ctx, &gladsheimv1.ReloadRequest{ServiceName: name})
			}))
		},
	}
}
