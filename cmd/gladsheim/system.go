package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

func (a *app) systemCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "system",
		Short: "Show the host, how busy it is, and what the agent can do on it",
		RunE: func(cmd *cobra.Command, _ []string) error {
			info, err := a.askHost(cmd.Context())
			if err != nil {
				return err
			}
			return a.present(info, func() error { return a.showSystem(info) })
		},
	}
}

func (a *app) askHost(ctx context.Context) (*gladsheimv1.HostInfo, error) {
	if err := a.connect(); err != nil {
		return nil, err
	}
	ctx, cancel := a.question(ctx)
	defer cancel()
	return a.client.GetHost(ctx, &gladsheimv1.GetHostRequest{})
}

func (a *app) showSystem(info *gladsheimv1.HostInfo) error {
	s := &sheet{style: a.style}
	s.line("Host", and(info.GetHostname(), in(labelled("kernel", info.GetKernel()))))
	started := fromMillis(info.GetStartTimeUnixMs())
	s.line("Agent", and(info.GetAgentVersion(), in(info.GetApiVersion(), "up "+span(a.now().Sub(started)))))
	s.line("Platform", and(info.GetPlatform(), in(atMost(info.GetMaxServices(), "at most %d services"))))
	if info.MemoryBudgetBytes != nil {
		s.line("Budget", fmt.Sprintf("%s promised of %s", bytesOf(info.GetMemoryPromisedBytes()), bytesOf(info.GetMemoryBudgetBytes())))
	}
	u := info.GetUsage()
	memory := fmt.Sprintf("%s used of %s, %s available", bytesOf(u.GetMemoryUsedBytes()), bytesOf(u.GetMemoryTotalBytes()), bytesOf(u.GetMemoryAvailableBytes()))
	s.line("Memory", and(memory, in(labelled("limited by", u.GetMemoryLimitedBy()))))
	s.line("CPU", and(fmt.Sprintf("%s of %d%%", percent(u.GetCpuPercent()), 100*u.GetCores()),
		in(plural(int(u.GetCores()), "core"), labelled("limited by", u.GetCoresLimitedBy()))))
	sayServices(s, info)
	if power := powerLine(info.GetPower()); power != "" {
		s.line("Power", power)
	}
	fmt.Fprintln(s, "Backends:")
	t := &table{style: a.style, signed: true}
	for _, b := range info.GetBackends() {
		switch {
		case b.GetSelected():
			t.add(signOn, b.GetName(), "in use", strings.Join(b.GetCapabilities(), " "))
		case b.GetAvailable():
			t.add(signOff, b.GetName(), "not used", strings.Join(b.GetCapabilities(), " "))
		default:
			t.add(signBad, b.GetName(), "not here", b.GetReason())
		}
	}
	_ = t.write(s) // a Builder takes everything
	_, err := fmt.Fprint(a.out, s.String())
	return err
}

// sayServices tells what all services together use.
func sayServices(s *sheet, info *gladsheimv1.HostInfo) {
	u := info.GetServicesUsage()
	if u == nil {
		s.line("Services", labelled("not counted together:", info.GetServicesUncounted()))
		return
	}
	s.line("Services", and(list(bytesOf(u.GetMemoryBytes()), labelled("swap", maybe(u.MemorySwapBytes, bytesOf)),
		labelled("CPU", percent(float64(u.GetCpuPercent()))), usecOf(u.GetCpuTimeUsec())+" in all", tasksOf(u), ioOf(u)),
		in(labelled("pressure", pressureOf(u)))))
}

func tasksOf(u *gladsheimv1.ResourceUsage) string {
	if u.PidsCurrent == nil {
		return ""
	}
	return plural(int(u.GetPidsCurrent()), "task")
}

// powerLine tells how the host is powered, "" without a battery.
func powerLine(p *gladsheimv1.PowerInfo) string {
	if !p.GetBattery() {
		return ""
	}
	text := fmt.Sprintf("on AC, battery at %.0f%%", p.GetPercent())
	if p.GetOnBattery() {
		text = fmt.Sprintf("on battery, %.0f%%", p.GetPercent())
	}
	switch p.GetLevel() {
	case "reduced":
		return and(text, in("health checks are fewer"))
	case "low":
		return and(text, in("services that are not essential are stopped"))
	}
	return text
}

// atMost tells of the cap on services, "" when there is none.
func atMost(services uint32, format string) string {
	if services == 0 {
		return ""
	}
	return fmt.Sprintf(format, services)
}

func (a *app) statsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "stats",
		Short: "Count the services by state",
		RunE: func(cmd *cobra.Command, _ []string) error {
			info, err := a.askHost(cmd.Context())
			if err != nil {
				return err
			}
			return a.present(info, func() error {
				t := &table{style: a.style, signed: true}
				t.add(noSign, "STATE", "SERVICES")
				total := uint32(0)
				for _, c := range info.GetStateCounts() {
					t.add(signOf(c.GetState()), stateWord(c.GetState()), number(c.GetCount()))
					total += c.GetCount()
				}
				t.add(noSign, "all", and(number(total), atMost(info.GetMaxServices(), "of %d")))
				return t.write(a.out)
			})
		},
	}
}
