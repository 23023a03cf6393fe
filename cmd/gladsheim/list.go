package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gladsheim/gladsheim/agent/service"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

func (a *app) listCommand() *cobra.Command {
	var states []string
	c := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls", "ps"},
		Short:   "List the services of this host",
		Example: "  gladsheim list --state running,crashed",
	}
	c.Flags().StringSliceVar(&states, "state", nil, "only services in this `state`: "+strings.Join(stateWords(), ", "))
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		req := &gladsheimv1.ListServicesRequest{IncludeResources: true, IncludeHealth: true}
		for _, text := range states {
			state, ok := gladsheimv1.ServiceState_value["SERVICE_STATE_"+strings.ToUpper(text)]
			if !ok {
				return usage(fmt.Errorf("cannot list services that are %q: states are %s", text, strings.Join(stateWords(), ", ")))
			}
			req.FilterStates = append(req.FilterStates, gladsheimv1.ServiceState(state))
		}
		if err := a.connect(); err != nil {
			return err
		}
		ctx, cancel := a.question(cmd.Context())
		defer cancel()
		services, err := a.client.ListServices(ctx, req)
		if err != nil {
			return err
		}
		switch a.format {
		case "json":
			return a.printJSON(services)
		case "jsonl":
			for _, s := range services.GetServices() {
				if err := a.printLine(s); err != nil {
					return err
				}
			}
			return nil
		}
		return a.showList(services)
	}
	return c
}

func stateWords() []string {
	var out []string
	for n := range int32(len(gladsheimv1.ServiceState_name)) {
		out = append(out, stateWord(gladsheimv1.ServiceState(n)))
	}
	return out
}

func (a *app) showList(services *gladsheimv1.ServiceList) error {
	t := &table{style: a.style, signed: true}
	t.add(noSign, "NAME", "STATE", "HEALTH", "RUNNER", "PID", "UPTIME", "RST", "CPU", "MEMORY", "TASKS", "NOTE")
	for _, s := range services.GetServices() {
		var pid, uptime, health, cpu, memory, tasks string
		if s.GetProcessId() != 0 {
			pid = number(s.GetProcessId())
			uptime = span(a.now().Sub(fromMillis(s.GetStartTimeUnixMs())))
			health = healthWord(s.GetHealthStatus().GetStatus())
		}
		if u := s.GetResourceUsage(); u != nil {
			cpu, memory, tasks = percent(float64(u.GetCpuPercent())), bytesOf(u.GetMemoryBytes()), maybe(u.PidsCurrent, number)
			memory = and(memory, labelled("/", held(s, "memory_max", size)))
			tasks = and(tasks, labelled("/", held(s, "pids_max", whole)))
		}
		t.add(signOf(s.GetState()), s.GetServiceName(), stateWord(s.GetState()), health, s.GetLaunch(), pid, uptime,
			number(s.GetRestartCount()), cpu, memory, tasks, a.note(s))
	}
	if err := t.write(a.out); err != nil {
		return err
	}
	_, err := fmt.Fprintln(a.out, summary(services))
	return err
}

// note is what is worth telling of a service in few words.
func (a *app) note(s *gladsheimv1.ServiceStatus) string {
	switch {
	case s.GetLogTrouble() != nil:
		return "log: " + s.GetLogTrouble().GetReason()
	case s.GetFrozen():
		return frozenNote(s)
	case s.GetHung() != nil:
		return "hangs: " + s.GetHung().GetWhy()
	case len(s.GetUnenforcedLimits()) > 0 && s.GetProcessId() != 0:
		return "not enforced: " + strings.Join(s.GetUnenforcedLimits(), ", ")
	case len(s.GetViolations()) > 0:
		var kinds []string
		for _, v := range s.GetViolations() {
			kinds = append(kinds, v.GetKind())
		}
		return strings.Join(kinds, ", ")
	case s.GetWaitingFor() != "":
		return s.GetWaitingFor()
	case s.GetNextAttemptUnixMs() != 0:
		return "next start " + ago(a.now(), fromMillis(s.GetNextAttemptUnixMs()))
	case s.GetPhase() == service.Held.String():
		return "held, to save the battery"
	case s.GetProcessId() == 0:
		return list(a.lastEnding(s), a.nextRun(s))
	}
	return ""
}

// lastEnding is how it ended last, and when.
func (a *app) lastEnding(s *gladsheimv1.ServiceStatus) string {
	x := s.GetLastExit()
	switch {
	case x == nil:
		return ""
	case s.GetCompleted():
		return "done " + ago(a.now(), fromMillis(x.GetEndedUnixMs()))
	}
	return fmt.Sprintf("%s, %s", ended(x), ago(a.now(), fromMillis(x.GetEndedUnixMs())))
}

// nextRun is when its schedule has it begin.
func (a *app) nextRun(s *gladsheimv1.ServiceStatus) string {
	switch {
	case s.GetSchedulePaused():
		return "its schedule rests"
	case s.GetNextRunUnixMs() != 0:
		return "next run " + ago(a.now(), fromMillis(s.GetNextRunUnixMs()))
	}
	return ""
}

// summary counts the listed services by state.
func summary(services *gladsheimv1.ServiceList) string {
	counts := map[gladsheimv1.ServiceState]int{}
	for _, s := range services.GetServices() {
		counts[s.GetState()]++
	}
	var parts []string
	for _, state := range []gladsheimv1.ServiceState{
		gladsheimv1.ServiceState_SERVICE_STATE_RUNNING, gladsheimv1.ServiceState_SERVICE_STATE_STARTING,
		gladsheimv1.ServiceState_SERVICE_STATE_RESTARTING, gladsheimv1.ServiceState_SERVICE_STATE_STOPPING,
		gladsheimv1.ServiceState_SERVICE_STATE_STOPPED, gladsheimv1.ServiceState_SERVICE_STATE_CRASHED,
		gladsheimv1.ServiceState_SERVICE_STATE_UNKNOWN,
	} {
		if n := counts[state]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, stateWord(state)))
		}
	}
	if len(parts) == 0 {
		return "no services"
	}
	return plural(len(services.GetServices()), "service") + ": " + strings.Join(parts, ", ")
}
