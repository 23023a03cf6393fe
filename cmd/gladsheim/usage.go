package main

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

func (a *app) usageCommand() *cobra.Command {
	var history, watch bool
	var since string
	var interval time.Duration
	c := &cobra.Command{
		Use:   "usage [NAME…]",
		Short: "Show what services use, now, over the last day, or as it goes",
		Long: `Show what services use, now, over the last day, or as it goes; all that run if none
is named.

--history shows the day behind: it is remembered for services whose definition has
"usage_history": true, by the second for 5 minutes, by 10 seconds for an hour, by the
minute for a day. Each line goes from nothing to the most there was; a blank is a time
in which nobody looked. HELD is memory without the page cache that the kernel takes
back first. -o json has every sample.

--watch goes on, in steps of --interval, also over a restart of the agent. STALL is the
part of the time in which some task waited for memory. Ctrl-c ends it.`,
		Example: `  gladsheim usage web --history --since 1h
  gladsheim usage web db --watch --interval 5s`,
		Args:              anyNames,
		ValidArgsFunction: a.completeNames,
		RunE: func(cmd *cobra.Command, names []string) error {
			switch flags := cmd.Flags(); {
			case !history && since != "":
				return usage(errors.New("--since belongs to --history"))
			case !watch && flags.Changed("interval"):
				return usage(errors.New("--interval belongs to --watch"))
			case history:
				return a.usageHistory(cmd.Context(), names, since)
			case watch:
				return a.watchUsage(cmd.Context(), names, interval)
			}
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
	c.Flags().BoolVar(&history, "history", false, "what was used, as far as it is remembered")
	c.Flags().StringVar(&since, "since", "", "no history from before then: 1h, or 2026-11-22T03:41:10Z")
	c.Flags().BoolVarP(&watch, "watch", "w", false, "go on with what is used")
	c.Flags().DurationVar(&interval, "interval", time.Second, "how often to tell with --watch, 1s to 1h")
	c.MarkFlagsMutuallyExclusive("history", "watch")
	return c
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
	worst, err := a.listed(ctx, &gladsheimv1.ListServicesRequest{IncludeResources: true},
		func(s *gladsheimv1.ServiceStatus) bool { return s.ResourceUsage == nil && s.GetProcessId() != 0 },
		func(ctx context.Context, s *gladsheimv1.ServiceStatus) (err error) {
			s.ResourceUsage, err = a.client.GetResourceUsage(ctx, &gladsheimv1.ResourceUsageRequest{ServiceName: s.GetServiceName()})
			return err
		},
		func(s *gladsheimv1.ServiceStatus) error {
			u := s.GetResourceUsage()
			switch {
			case u == nil: // it does not run
			case a.machine(): // with the name, which the usage alone does not have
				return a.printJSON(&gladsheimv1.ServiceStatus{ServiceName: s.GetServiceName(), State: s.GetState(), ResourceUsage: u})
			default:
				addUsage(t, measured{u, s.GetServiceName()})
			}
			return nil
		})
	if err != nil {
		return err
	}
	return worstOf(worst)
}

func addUsage(t *table, u measured) {
	t.add(noSign, u.name, percent(float64(u.GetCpuPercent())), usecOf(u.GetCpuTimeUsec()), maybe(u.ThrottledUsec, usecOf),
		bytesOf(u.GetMemoryBytes()), maybe(u.MemoryPeakBytes, bytesOf), maybe(u.MemorySwapBytes, bytesOf),
		maybe(u.PidsCurrent, number), maybe(u.OomKills, number), u.GetSource())
}
