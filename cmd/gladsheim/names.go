package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/api/client"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// parallel is how many services are asked about at once.
const parallel = 16

// someNames wants one service or more.
func someNames(_ *cobra.Command, args []string) error {
	if len(args) == 0 {
		return errors.New("the name of a service is missing")
	}
	return nil
}

func anyNames(*cobra.Command, []string) error { return nil }

// answers is how one verb asks about a service and shows what it hears.
type answers[M proto.Message] struct {
	ask   func(context.Context, string) (M, error)
	show  func(M) error // to people; programs get the message as it is
	judge func(M) int   // its exit code; nil when every answer is well
}

// each asks about several services at once and shows the answers in the order
// of names. What fails is told and does not keep the others; the exit code is
// the worst of all.
func each[M proto.Message](ctx context.Context, a *app, names []string, verb answers[M]) error {
	if err := a.connect(); err != nil {
		return err
	}
	heard := make([]M, len(names))
	errs := askAll(len(names), func(i int) (err error) {
		heard[i], err = verb.ask(ctx, names[i])
		return err
	})
	worst, away := exitOK, false
	for i, m := range heard {
		if err := errs[i]; err != nil {
			lost := client.Unreachable(err)
			if ctx.Err() == nil && !(lost && away) { // that nobody answers is told once
				a.complain(err)
			}
			away = away || lost
			worst = max(worst, a.code(err))
			continue
		}
		if err := a.present(m, func() error { return verb.show(m) }); err != nil {
			return err
		}
		if verb.judge != nil {
			worst = max(worst, verb.judge(m))
		}
	}
	return worstOf(worst)
}

// askAll asks n times, some at once, and returns what came of each.
func askAll(n int, ask func(i int) error) []error {
	errs := make([]error, n)
	var group errgroup.Group
	group.SetLimit(parallel)
	for i := range n {
		group.Go(func() error {
			errs[i] = ask(i)
			return nil
		})
	}
	_ = group.Wait() // each error is in errs
	return errs
}

// listed asks for all services, and again for what a list that is too long left
// out of its last entries: lacking says of an entry whether that is so, and ask
// fills it in. What can not be had is told, and makes the exit code; services
// that ended or went meanwhile are passed over. show gets the others.
func (a *app) listed(ctx context.Context, req *gladsheimv1.ListServicesRequest, lacking func(*gladsheimv1.ServiceStatus) bool,
	ask func(context.Context, *gladsheimv1.ServiceStatus) error, show func(*gladsheimv1.ServiceStatus) error) (worst int, err error) {
	if err := a.connect(); err != nil {
		return exitOK, err
	}
	once, cancel := a.question(ctx)
	defer cancel()
	list, err := a.client.ListServices(once, req)
	if err != nil {
		return exitOK, err
	}
	services := list.GetServices()
	errs := askAll(len(services), func(i int) error {
		if !lacking(services[i]) {
			return nil
		}
		ctx, cancel := a.question(ctx)
		defer cancel()
		return ask(ctx, services[i])
	})
	for i, s := range services {
		switch err := errs[i]; {
		case err == nil:
			if err := show(s); err != nil {
				return worst, err
			}
		case client.KindOf(err) == service.NotFound, client.KindOf(err) == service.NotRunning:
		default:
			if ctx.Err() == nil {
				a.complain(err)
			}
			worst = max(worst, a.code(err))
		}
	}
	return worst, nil
}

// worstOf is the error of an exit code whose reason was told.
func worstOf(code int) error {
	if code == exitOK {
		return nil
	}
	return &failure{code, nil}
}

// present shows one message: to programs as it is, to people by show.
func (a *app) present(m proto.Message, show func() error) error {
	if a.machine() {
		return a.printJSON(m)
	}
	return show()
}

const completionTimeout = time.Second

// completeNames offers the names of services to the shell.
func (a *app) completeNames(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if a.connect() != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
	defer cancel()
	services, err := a.client.ListServices(ctx, &gladsheimv1.ListServicesRequest{})
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	given := map[string]bool{}
	for _, name := range args {
		given[name] = true
	}
	var names []string
	for _, s := range services.GetServices() {
		if !given[s.GetServiceName()] {
			names = append(names, fmt.Sprintf("%s\t%s", s.GetServiceName(), plain(s.GetDescription())))
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
