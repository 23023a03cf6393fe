package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/spf13/cobra"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

func (a *app) restartCommand() *cobra.Command {
	var force, rolling bool
	var patience, within time.Duration
	var id string
	c := &cobra.Command{
		Use:   "restart NAME…",
		Short: "Stop services if they run, and start them again",
		Long: `Stop services if they run, and start them again: all at once, or with --rolling
one after the other.

With --rolling the next one is begun when the one before is ready and, where its
definition has a health check that asks, healthy. The first that fails makes the exit
code, and those behind it are not touched. Ctrl-c lets the one in hand come to its
end, and begins no further one.`,
		Example: `  gladsheim restart web
  gladsheim restart --rolling web1 web2 web3 --within 1m`,
		Args:              someNames,
		ValidArgsFunction: a.completeNames,
	}
	stopFlags(c, &force, &patience)
	requestIDFlag(c, &id)
	c.Flags().BoolVar(&rolling, "rolling", false, "one after the other, in the order given, until one fails")
	c.Flags().DurationVar(&within, "within", 0, "with --rolling: the `time` that each may take until it is ready and healthy; as its definition allows if not given")
	c.MarkFlagsMutuallyExclusive("rolling", requestID)
	c.RunE = func(cmd *cobra.Command, names []string) error {
		timeout, err := stopTimeout(cmd, patience)
		if err != nil {
			return err
		}
		if rolling {
			req := &gladsheimv1.RollingRestartRequest{ServiceNames: names, ForceStop: force, StopTimeoutMs: timeout}
			if cmd.Flags().Changed("within") {
				ms := within.Milliseconds()
				if ms < 1 || ms > math.MaxUint32 {
					return usage(fmt.Errorf("cannot wait %v: --within is out of range", within))
				}
				each := uint32(ms)
				req.TimeoutMs = &each
			}
			return a.roll(cmd.Context(), req)
		}
		if cmd.Flags().Changed("within") {
			return usage(errors.New("cannot take --within without --rolling; --timeout is for all together"))
		}
		return each(cmd.Context(), a, names, a.started(func(ctx context.Context, name string) (*gladsheimv1.ServiceStatus, error) {
			ctx, cancel := a.deed(ctx)
			defer cancel()
			return a.client.RestartService(ctx, &gladsheimv1.RestartServiceRequest{ServiceName: name, ForceStop: force, StopTimeoutMs: timeout, RequestId: id})
		}))
	}
	return c
}

// roll shows each step of a rolling restart, and returns why it ended early.
func (a *app) roll(ctx context.Context, req *gladsheimv1.RollingRestartRequest) error {
	if err := a.connect(); err != nil {
		return err
	}
	ctx, cancel := a.deed(ctx)
	defer cancel()
	stream, err := a.client.RollingRestart(ctx, req)
	if err != nil {
		return err
	}
	show := a.states(nil).show
	return receive(stream.Recv, func(p *gladsheimv1.RollingRestartProgress) error {
		switch {
		case a.machine():
			return a.printLine(p)
		case p.GetStep() == gladsheimv1.RollingStep_ROLLING_STEP_READY:
			return a.tell("… %s: running, pid %d; waiting until it is healthy\n", p.GetServiceName(), p.GetStatus().GetProcessId())
		case p.GetStep() == gladsheimv1.RollingStep_ROLLING_STEP_DONE:
			return show(p.GetStatus())
		case p.GetStep() == gladsheimv1.RollingStep_ROLLING_STEP_UNTOUCHED:
			return a.tell("- %s: not touched\n", p.GetServiceName())
		}
		return nil // its end is told, by its status or by the error of the whole
	})
}

func (a *app) tell(format string, args ...any) error {
	_, err := fmt.Fprintf(a.out, format, args...)
	return err
}
