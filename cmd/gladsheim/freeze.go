package main

import (
	"context"

	"github.com/spf13/cobra"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

func (a *app) freezeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "freeze NAME…",
		Short: "Stop running services where they are, until they are thawed",
		Long: `Stop running services where they are, with everything they started, until they are
thawed.

A frozen service keeps its memory, takes no CPU time, and is not checked. Signals
wait, but for SIGKILL; stop and restart thaw it first. It needs a host with cgroup v2.`,
		Args:              someNames,
		ValidArgsFunction: a.completeNames,
		RunE: func(cmd *cobra.Command, names []string) error {
			return each(cmd.Context(), a, names, a.states(func(ctx context.Context, name string) (*gladsheimv1.ServiceStatus, error) {
				ctx, cancel := a.question(ctx)
				defer cancel()
				return a.client.Freeze(ctx, &gladsheimv1.FreezeRequest{ServiceName: name})
			}))
		},
	}
}

func (a *app) thawCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "thaw NAME…",
		Short:             "Let frozen services run on",
		Args:              someNames,
		ValidArgsFunction: a.completeNames,
		RunE: func(cmd *cobra.Command, names []string) error {
			return each(cmd.Context(), a, names, a.states(func(ctx context.Context, name string) (*gladsheimv1.ServiceStatus, error) {
				ctx, cancel := a.question(ctx)
				defer cancel()
				return a.client.Thaw(ctx, &gladsheimv1.ThawRequest{ServiceName: name})
			}))
		},
	}
}

// frozenNote tells that a service is frozen, and by whom if that is not its own cgroup.
func frozenNote(s *gladsheimv1.ServiceStatus) string {
	if s.GetFrozenBy() == s.GetCgroup() {
		return "frozen"
	}
	return "frozen by " + s.GetFrozenBy()
}
