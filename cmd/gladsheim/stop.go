package main

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/spf13/cobra"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

func (a *app) stopCommand() *cobra.Command {
	var force bool
	var patience time.Duration
	var id string
	c := &cobra.Command{
		Use:               "stop NAME…",
		Short:             "Stop services, those first that name others, and wait until nothing of them is left",
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
		return a.inWaves(cmd.Context(), names, a.states(func(ctx context.Context, name string) (*gladsheimv1.ServiceStatus, error) {
			ctx, cancel := a.deed(ctx)
			defer cancel()
			return a.client.StopService(ctx, &gladsheimv1.StopServiceRequest{ServiceName: name, Force: force, TimeoutMs: timeout, RequestId: id})
		}))
	}
	return c
}

const requestID = "request-id"

func requestIDFlag(c *cobra.Command, id *string) {
	c.Flags().StringVar(id, requestID, "", "the `ID` of this request: with the one of an earlier try, that is not done twice")
}

const stopTimeoutFlag = "stop-timeout"

func stopFlags(c *cobra.Command, force *bool, patience *time.Duration) {
	c.Flags().BoolVar(force, "force", false, "kill at once instead of asking first")
	c.Flags().DurationVar(patience, stopTimeoutFlag, 0, "the `time` it may take to end before it is killed; the definition's if not given")
}

// stopTimeout reads the flag; nil when it was not given.
func stopTimeout(cmd *cobra.Command, patience time.Duration) (*uint32, error) {
	if !cmd.Flags().Changed(stopTimeoutFlag) {
		return nil, nil
	}
	ms := patience.Milliseconds()
	if ms < 0 || ms > math.MaxUint32 {
		return nil, usage(fmt.Errorf("cannot wait %v: --%s is out of range", patience, stopTimeoutFlag))
	}
	timeout := uint32(ms)
	return &timeout, nil
}
