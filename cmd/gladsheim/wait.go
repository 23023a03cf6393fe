package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/api/client"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

func (a *app) waitCommand() *cobra.Command {
	goal := "ready"
	c := &cobra.Command{
		Use:   "wait NAME…",
		Short: "Wait until services are ready, healthy or stopped",
		Long: `Wait until each of several services has been ready, healthy or stopped once. Nothing is
asked for: what does not run is not started.

Exit codes: 0 each has, 1 one has crashed, 3 one is stopped and was to be ready or
healthy, 4 no such service, 8 --timeout is over; without it there is no end. A service
that is about to be restarted is waited for, and so is the next agent when this one
ends. To wait for "stopped", what has crashed is stopped, too, and so is what was
unregistered meanwhile.`,
		Example: `  gladsheim wait web --for healthy --timeout 1m
  gladsheim wait a b c --for stopped`,
		Args:              someNames,
		ValidArgsFunction: a.completeNames,
	}
	c.Flags().StringVar(&goal, "for", goal, "`what`: ready, healthy or stopped")
	c.RunE = func(cmd *cobra.Command, names []string) error {
		reached, known := goals[goal]
		if !known {
			return usage(fmt.Errorf("cannot wait for %q: --for is ready, healthy or stopped", goal))
		}
		if err := a.connect(); err != nil {
			return err
		}
		ctx, cancel := a.deed(cmd.Context())
		defer cancel()
		slices.Sort(names)
		w := vigil{app: a, goal: goal, reached: reached, left: slices.Compact(names), stood: map[string]string{}}
		err := w.wait(ctx)
		if err != nil && client.KindOf(err) == service.Timeout {
			return w.late()
		}
		return err
	}
	return c
}

// news is how a service stands: in a snapshot, or after an event.
type news struct {
	name, phase string
	healthy     bool
	completed   bool // of a job: it is done
}

// goals tell whether what is waited for has come.
var goals = map[string]func(news) bool{
	"ready":   func(n news) bool { return n.phase == service.Running.String() },
	"healthy": func(n news) bool { return n.healthy },
	"stopped": func(n news) bool { return n.ended() || n.phase == service.Held.String() },
}

// ended tells whether nobody will start it but by request.
func (n news) ended() bool {
	return n.phase == service.Stopped.String() || n.phase == service.Crashed.String()
}

// vigil is one run of the verb.
type vigil struct {
	*app
	goal    string
	reached func(news) bool
	left    []string          // services that are still waited for
	stood   map[string]string // the phase in which each was seen last
	jobs    map[string]bool   // those that do a job, and are ready when it is done
	after   *uint64           // the sequence of the last message
}

// wait follows what happens until each service is where it is to be, or can not get there.
func (w *vigil) wait(ctx context.Context) error {
	err := follow(ctx, w.app, true,
		func(options ...grpc.CallOption) (grpc.ServerStreamingClient[gladsheimv1.WatchEvent], error) {
			return w.client.Watch(ctx, &gladsheimv1.WatchRequest{ServiceNames: w.left, Snapshot: true, AfterSequence: w.after}, options...)
		},
		func(m *gladsheimv1.WatchEvent) error { return w.take(ctx, m) },
		func() string { return "waiting for " + strings.Join(w.left, ", ") })
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// take looks at one message; io.EOF ends the watch when all is reached.
func (w *vigil) take(ctx context.Context, m *gladsheimv1.WatchEvent) error {
	sequence := m.GetSequence()
	w.after = &sequence
	var n news
	switch item := m.GetItem().(type) {
	case *gladsheimv1.WatchEvent_Snapshot:
		s := item.Snapshot
		n = news{s.GetServiceName(), s.GetPhase(), s.GetHealthStatus().GetStatus() == gladsheimv1.HealthStatus_HEALTH_STATUS_HEALTHY, s.GetCompleted()}
		if s.GetType() == service.TypeOneshot.String() {
			if w.jobs == nil {
				w.jobs = map[string]bool{}
			}
			w.jobs[n.name] = true
		}
	case *gladsheimv1.WatchEvent_Event:
		e := item.Event
		n = news{e.GetServiceName(), e.GetPhase(), e.GetKind() == service.Healthy.String(), false}
		if e.GetKind() == service.NoticeUnregistered.String() {
			return w.gone(n.name, m)
		}
	default:
		return nil
	}
	if !slices.Contains(w.left, n.name) {
		return nil
	}
	w.stood[n.name] = n.phase
	reached := w.reached
	if w.jobs[n.name] && w.goal != "stopped" {
		reached = func(n news) bool { return n.completed }
		if n.phase == service.Stopped.String() && !n.completed { // an event does not tell whether it is done
			s, err := w.client.GetServiceStatus(ctx, &gladsheimv1.ServiceStatusRequest{ServiceName: n.name})
			if err != nil {
				return err
			}
			n.completed = s.GetCompleted()
		}
	}
	switch {
	case reached(n):
		return w.arrived(n.name, m)
	case n.phase == service.Crashed.String():
		return &failure{exitFailure, fmt.Errorf("cannot wait for %s any more: it has crashed; see: gladsheim status %s", n.name, n.name)}
	case n.ended():
		return &failure{exitNotRunning, fmt.Errorf("cannot wait for %s any more: it is stopped; to start it: gladsheim start %s", n.name, n.name)}
	}
	return nil
}

// gone takes that a service was unregistered: then it does not run.
func (w *vigil) gone(name string, m *gladsheimv1.WatchEvent) error {
	if !slices.Contains(w.left, name) {
		return nil
	}
	if w.goal == "stopped" {
		return w.arrived(name, m)
	}
	return &failure{exitNotFound, fmt.Errorf("cannot wait for %s any more: it was unregistered", name)}
}

// arrived shows that a service has reached what is waited for; programs get the message
// that told it.
func (w *vigil) arrived(name string, m proto.Message) error {
	w.left = slices.DeleteFunc(slices.Clone(w.left), func(n string) bool { return n == name })
	err := error(nil)
	if w.machine() {
		err = w.printLine(m)
	} else {
		err = w.tell("%s: %s\n", plain(name), w.goal)
	}
	if err == nil && len(w.left) == 0 {
		return io.EOF
	}
	return err
}

// late tells what there was no more time for.
func (w *vigil) late() error {
	var stand []string
	for _, name := range w.left {
		stand = append(stand, and(plain(name), in(w.stood[name])))
	}
	return &failure{exitTimeout, fmt.Errorf("cannot wait any longer than %v until each is %s: %s", w.timeout, w.goal, strings.Join(stand, ", "))}
}
