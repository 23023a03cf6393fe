package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

func (a *app) restartCommand() *cobra.Command {
	var force bool
	var patience time.Duration
	var id string
	c := &cobra.Command{
		Use:               "restart NAME…",
		Short:             "Stop services if they run, and start them again",
		Args:              someNames,
		ValidArgsFunction: a.completeNames,
	}
	stopFlags(c, &force, &patience)
	requestIDFlag(c, &id)
	c.RunE = func(cmd *cobra.Command, names []string) error {
		timeout, err := stopTimeout(cmd, patience)
		if err != nil {
			return err
		}
		return each(cmd.Context(), a, names, a.started(func(ctx context.Context, name string) (*gladsheimv1.ServiceStatus, error) {
			ctx, cancel := a.deed(ctx)
			defer cancel()
			return a.client.RestartService(ctx, &gladsheimv1.RestartServiceRequest{ServiceName: name, ForceStop: force, StopTimeoutMs: timeout, RequestId: id})
		}))
	}
	return c
}
