package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"

	"github.com/spf13/cobra"

	"github.com/gladsheim/gladsheim/agent/service"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// A signal is in capitals or a number, which no service's name is.
var signalForm = regexp.MustCompile(`^[A-Z0-9][A-Z0-9+-]*$`)

func (a *app) signalCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "signal NAME… SIGNAL",
		Short: "Send a signal to the main process of services",
		Long: `Send a signal to the main process of services.

If a service dies of it that is an end like any other, and its restart policy
applies; to end a service use stop or kill.`,
		Example:           "  gladsheim signal web SIGHUP",
		Args:              someNames,
		ValidArgsFunction: a.completeNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			names, signal, err := splitSignal(args)
			if err != nil {
				return err
			}
			return each(cmd.Context(), a, names, a.states(func(ctx context.Context, name string) (*gladsheimv1.ServiceStatus, error) {
				ctx, cancel := a.question(ctx)
				defer cancel()
				return a.client.Signal(ctx, &gladsheimv1.SignalRequest{ServiceName: name, Signal: signal})
			}))
		},
	}
}

// splitSignal finds the signal among the names.
func splitSignal(args []string) (names []string, signal string, err error) {
	for _, arg := range args {
		switch {
		case !signalForm.MatchString(arg):
			names = append(names, arg)
		case signal != "":
			return nil, "", usage(fmt.Errorf("cannot send both %s and %s", signal, arg))
		default:
			signal = arg
		}
	}
	switch {
	case signal == "":
		return nil, "", usage(errors.New("cannot tell which signal to send; write it in capitals, as in: gladsheim signal web SIGHUP"))
	case len(names) == 0:
		return nil, "", usage(errors.New("cannot tell which service to signal"))
	}
	if _, err := service.ParseSignal(signal); err != nil {
		return nil, "", usage(fmt.Errorf("cannot signal: %w", err))
	}
	return names, signal, nil
}
