package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/api/client"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// What status shows of the past.
const (
	statusEvents = 5
	statusLines  = 10
)

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status NAME…",
		Short: "Show everything about services",
		Long: `Show everything about services: state, health, limits and usage, processes, the
latest events and the last lines of output.

Exits with 3 if one is stopped or crashed, and with 4 if there is no such one.`,
		Args:              someNames,
		ValidArgsFunction: a.completeNames,
		RunE: func(cmd *cobra.Command, names []string) error {
			told := false
			return each(cmd.Context(), a, names, answers[*report]{
				ask: a.examine,
				show: func(r *report) error {
					if told {
						fmt.Fprintln(a.out)
					}
					told = true
					return a.showStatus(r)
				},
				judge: func(r *report) int {
					switch r.GetState() {
					case gladsheimv1.ServiceState_SERVICE_STATE_STOPPED, gladsheimv1.ServiceState_SERVICE_STATE_CRASHED:
						return exitNotRunning
					}
					return exitOK
				},
			})
		},
	}
}

// report is a status and what people want to see beside it.
type report struct {
	*gladsheimv1.ServiceStatus
	events []*gladsheimv1.WatchEvent
	lines  []*gladsheimv1.LogLine
	noLog  string // why there are no lines
}

func (a *app) examine(ctx context.Context, name string) (*report, error) {
	ctx, cancel := a.question(ctx)
	defer cancel()
	st, err := a.client.GetServiceStatus(ctx, &gladsheimv1.ServiceStatusRequest{ServiceName: name})
	if err != nil || a.machine() {
		return &report{ServiceStatus: st}, err
	}
	r := &report{ServiceStatus: st}
	if r.events, err = a.latestEvents(ctx, name); err != nil {
		return nil, err
	}
	r.lines, err = a.latestLines(ctx, name)
	switch client.KindOf(err) {
	case service.Conflict, service.HostUnavailable: // the log is not kept, or can not be read
		r.noLog, err = client.Message(err), nil
	}
	return r, err
}

func (a *app) latestEvents(ctx context.Context, name string) ([]*gladsheimv1.WatchEvent, error) {
	count := uint32(statusEvents)
	stream, err := a.client.Watch(ctx, &gladsheimv1.WatchRequest{ServiceNames: []string{name}, BacklogCount: &count, BacklogOnly: true})
	if err != nil {
		return nil, err
	}
	var out []*gladsheimv1.WatchEvent
	err = receive(stream.Recv, func(ev *gladsheimv1.WatchEvent) error {
		if ev.GetEvent() != nil {
			out = append(out, ev)
		}
		return nil
	})
	return out, err
}

func (a *app) latestLines(ctx context.Context, name string) ([]*gladsheimv1.LogLine, error) {
	count := uint32(statusLines)
	stream, err := a.client.Tail(ctx, &gladsheimv1.TailRequest{ServiceName: name, Lines: &count})
	if err != nil {
		return nil, err
	}
	var out []*gladsheimv1.LogLine
	err = receive(stream.Recv, func(l *gladsheimv1.LogLine) error {
		out = append(out[max(0, len(out)+1-statusLines):], l) // a long line comes in many pieces
		return nil
	})
	return out, err
}

// receive hands on what comes until the stream ends.
func receive[M any](next func() (M, error), take func(M) error) error {
	for {
		m, err := next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := take(m); err != nil {
			return err
		}
	}
}
