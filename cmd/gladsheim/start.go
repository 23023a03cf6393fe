package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

func (a *app) startCommand() *cobra.Command {
	var environment, limits []string
	var directory string
	var arguments []string
	var id string
	c := &cobra.Command{
		Use:   "start NAME…",
		Short: "Start services, and wait until they are ready, or have done their job",
		Long: `Start services, and wait until they are ready. One of the type oneshot is ready when
its job is done. Of several, one that names another is started after it.

The flags change this one start; what they leave out comes from the definition.`,
		Example: `  gladsheim start web
  gladsheim start db cache web
  gladsheim start web --env DEBUG=1 --limit memory_max=512MiB`,
		Args:              someNames,
		ValidArgsFunction: a.completeNames,
	}
	flags := c.Flags()
	flags.StringArrayVarP(&environment, "env", "e", nil, "set a variable, `NAME=VALUE`, over those of the definition")
	flags.StringVar(&directory, "dir", "", "run in this `directory` instead of the definition's")
	flags.StringArrayVar(&arguments, "arg", nil, "an `argument` of the program; may be given again")
	flags.StringArrayVar(&limits, "limit", nil, "a limit, `NAME=VALUE`, over those of the definition")
	requestIDFlag(c, &id)
	c.RunE = func(cmd *cobra.Command, names []string) error {
		variables := map[string]string{}
		for _, pair := range environment {
			name, value, ok := strings.Cut(pair, "=")
			if !ok || name == "" {
				return usage(fmt.Errorf("cannot set %q: it is not NAME=VALUE", pair))
			}
			variables[name] = value
		}
		asked, err := parseLimits(limits)
		if err != nil {
			return err
		}
		return a.inOrder(cmd.Context(), names, a.started(func(ctx context.Context, name string) (*gladsheimv1.ServiceStatus, error) {
			ctx, cancel := a.deed(ctx)
			defer cancel()
			return a.client.StartService(ctx, &gladsheimv1.StartServiceRequest{
				ServiceName: name, EnvironmentVars: variables, WorkingDirectory: directory, Args: arguments, ResourceLimits: asked, RequestId: id,
			})
		}))
	}
	return c
}

// started is states of a verb that starts: a service that does not run after it has
// ended already, which is told with how.
func (a *app) started(ask func(context.Context, string) (*gladsheimv1.ServiceStatus, error)) answers[*gladsheimv1.ServiceStatus] {
	verb := a.states(ask)
	show := verb.show
	verb.show = func(s *gladsheimv1.ServiceStatus) error {
		x := s.GetLastExit()
		if s.GetCompleted() {
			took := fromMillis(x.GetEndedUnixMs()).Sub(fromMillis(x.GetStartedUnixMs()))
			_, err := fmt.Fprintf(a.out, "%s %s: done, in %s\n", a.show(signOf(s.GetState())), s.GetServiceName(), span(took))
			return err
		}
		switch s.GetState() {
		case gladsheimv1.ServiceState_SERVICE_STATE_RUNNING, gladsheimv1.ServiceState_SERVICE_STATE_STARTING:
			return show(s)
		default:
			how := "; see: gladsheim history " + s.GetServiceName()
			if x != nil && x.GetIncarnation() == s.GetIncarnation() {
				how = ": " + ended(x)
			}
			_, err := fmt.Fprintf(a.out, "%s %s: %s; it was ready and has ended already%s\n", a.show(signOf(s.GetState())), s.GetServiceName(), stateWord(s.GetState()), plain(how))
			return err
		}
	}
	return verb
}

// states asks by a verb that answers with the status after it, and shows that
// in a line.
func (a *app) states(ask func(context.Context, string) (*gladsheimv1.ServiceStatus, error)) answers[*gladsheimv1.ServiceStatus] {
	return answers[*gladsheimv1.ServiceStatus]{ask: ask, show: func(s *gladsheimv1.ServiceStatus) error {
		line := fmt.Sprintf("%s %s: %s", a.show(signOf(s.GetState())), s.GetServiceName(), stateWord(s.GetState()))
		if pid := s.GetProcessId(); pid != 0 {
			line += fmt.Sprintf(", pid %d", pid)
		}
		if s.GetFrozen() {
			line += ", " + frozenNote(s)
		}
		if missing := s.GetUnenforcedLimits(); len(missing) > 0 && s.GetProcessId() != 0 {
			line += ", without " + strings.Join(missing, ", ") + ", which this host does not enforce"
		}
		_, err := fmt.Fprintln(a.out, line)
		return err
	}}
}
