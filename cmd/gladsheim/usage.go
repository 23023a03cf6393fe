package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

func (a *app) usageCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "usage [NAME…]",
		Short:             "Show what services use now; all that run if none is named",
		Args:              anyNames,
		ValidArgsFunction: a.completeNames,
		RunE: func(cmd *cobra.Command, names []string) error {
			t := &table{style: a.style}
			t.add(noSign, "SERVICE", "CPU", "CPU TIME", "THROTTLED", "MEMORY", "PEAK", "SWAP", "TASKS", "OOM KILLS", "SOURCE")
			var err error
			if len(names) == 0 {
				err = a.usageOfAll(cmd.Context(), t)
			} else {
				err = a.usageOf(cmd.Context(), t, names)
			}
			if a.machine() || len(t.rows) == 1 && err != nil {
				return err
			}
			return errors.Join(t.write(a.out), err)
		},
	}
}

// measured is a usage with the name of its service, which it does not say.
type measured struct {
	*gladsheimv1.ResourceUsage
	name string
}

func (a *app) usageOf(ctx context.Context, t *table, names []string) error {
	return each(ctx, a, names, answers[measured]{
		ask: func(ctx context.Context, name string) (measured, error) {
			ctx, cancel := a.question(ctx)
			defer cancel()
			u, err := a.client.GetResourceUsage(ctx, &gladsheimv1.ResourceUsageRequest{ServiceName: name})
			return measured{u, name}, err
		},
		show: func(u measured) error { addUsage(t, u); return nil },
	})
}

func (a *app) usageOfAll(ctx context.Context, t *table) error {
	if err := a.connect(); err != nil {
		return err
	}
	ctx, cancel := a.question(ctx)
	defer cancel()
	services, err := a.client.ListServices(ctx, &gladsheimv1.ListServicesRequest{IncludeResources: true})
	if err != nil {
		return err
	}
	for _, s := range services.GetServices() {
		u := s.GetResourceUsage()
		if u == nil {
			continue
		}
		if a.machine() { // with the name, which the usage alone does not have
			err = a.printJSON(&gladsheimv1.ServiceStatus{ServiceName: s.GetServiceName(), State: s.GetState(), ResourceUsage: u})
		} else {
			addUsage(t, measured{u, s.GetServiceName()})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func addUsage(t *table, u measured) {
	t.add(noSign, u.name, percent(float64(u.GetCpuPercent())), usecOf(u.GetCpuTimeUsec()), maybe(u.ThrottledUsec, usecOf),
		bytesOf(u.GetMemoryBytes()), maybe(u.MemoryPeakBytes, bytesOf), maybe(u.MemorySwapBytes, bytesOf),
		maybe(u.PidsCurrent, number), maybe(u.OomKills, number), u.GetSource())
}
