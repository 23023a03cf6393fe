package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

func (a *app) healthCommand() *cobra.Command {
	var now, checks bool
	c := &cobra.Command{
		Use:   "health [NAME…]",
		Short: "Show how services are; exit with 1 if one is unhealthy",
		Long: `Show how services are, all of them if none is named; exit with 1 if one is unhealthy.

With --now each is checked at once, and the answer is waited for. With --checks the
latest checks of each are shown, at most 64, the latest first.`,
		Example:           "  gladsheim health\n  gladsheim health web --now\n  gladsheim health web --checks",
		Args:              anyNames,
		ValidArgsFunction: a.completeNames,
		RunE: func(cmd *cobra.Command, names []string) error {
			switch {
			case (now || checks) && len(names) == 0:
				return usage(errors.New("cannot tell which services to check; name them"))
			case checks:
				return a.checksOf(cmd.Context(), names)
			}
			t := &table{style: a.style, signed: true}
			t.add(noSign, "SERVICE", "STATUS", "CHECK", "TARGET", "FAILED", "LAST", "NEXT", "MESSAGE")
			var err error
			if len(names) == 0 {
				err = a.healthOfAll(cmd.Context(), t)
			} else {
				err = each(cmd.Context(), a, names, answers[*gladsheimv1.ServiceHealth]{
					ask: func(ctx context.Context, name string) (*gladsheimv1.ServiceHealth, error) {
						ctx, cancel := a.question(ctx)
						defer cancel()
						if now {
							return a.client.CheckNow(ctx, &gladsheimv1.CheckNowRequest{ServiceName: name})
						}
						return a.client.GetServiceHealth(ctx, &gladsheimv1.ServiceHealthRequest{ServiceName: name})
					},
					show:  func(h *gladsheimv1.ServiceHealth) error { a.addHealth(t, h); return nil },
					judge: healthCode,
				})
			}
			if a.machine() || len(t.rows) == 1 {
				return err
			}
			return errors.Join(t.write(a.out), err)
		},
	}
	c.Flags().BoolVar(&now, "now", false, "check at once, and wait for what that says")
	c.Flags().BoolVar(&checks, "checks", false, "show the latest checks instead")
	c.MarkFlagsMutuallyExclusive("now", "checks")
	return c
}

// checksOf shows the latest checks of services.
func (a *app) checksOf(ctx context.Context, names []string) error {
	head := a.headings(names)
	return each(ctx, a, names, answers[*gladsheimv1.CheckHistory]{
		ask: func(ctx context.Context, name string) (*gladsheimv1.CheckHistory, error) {
			ctx, cancel := a.question(ctx)
			defer cancel()
			return a.client.ListChecks(ctx, &gladsheimv1.ListChecksRequest{ServiceName: name})
		},
		show: func(h *gladsheimv1.CheckHistory) error {
			head(h.GetServiceName())
			if len(h.GetChecks()) == 0 {
				_, err := fmt.Fprintln(a.out, "none: it does not run, or its process alone is looked at")
				return err
			}
			t := &table{style: a.style, signed: true}
			t.add(noSign, "WHEN", "TOOK", "STATUS", "MESSAGE")
			for _, c := range h.GetChecks() {
				mark := signGood
				if c.GetFailed() {
					mark = signBad
				}
				took := time.Duration(c.GetTookUs()) * time.Microsecond
				t.add(mark, ago(a.now(), time.UnixMilli(c.GetBeganUnixMs())), took.Round(100*time.Microsecond).String(), healthWord(c.GetStatus()), c.GetMessage())
			}
			return t.write(a.out)
		},
	})
}

// healthOfAll fills t with every service.
func (a *app) healthOfAll(ctx context.Context, t *table) error {
	unwell := exitOK
	worst, err := a.listed(ctx, &gladsheimv1.ListServicesRequest{IncludeHealth: true},
		func(s *gladsheimv1.ServiceStatus) bool { return s.HealthStatus == nil },
		func(ctx context.Context, s *gladsheimv1.ServiceStatus) (err error) {
			s.HealthStatus, err = a.client.GetServiceHealth(ctx, &gladsheimv1.ServiceHealthRequest{ServiceName: s.GetServiceName()})
			return err
		},
		func(s *gladsheimv1.ServiceStatus) error {
			h := s.GetHealthStatus()
			unwell = max(unwell, healthCode(h))
			return a.present(h, func() error { a.addHealth(t, h); return nil })
		})
	if err != nil {
		return err
	}
	return worstOf(max(worst, unwell))
}

func (a *app) addHealth(t *table, h *gladsheimv1.ServiceHealth) {
	var failed string
	if h.GetThreshold() != 0 {
		failed = fmt.Sprintf("%d of %d", h.GetConsecutiveFailures(), h.GetThreshold())
	}
	when := func(unix int64) string {
		if unix == 0 {
			return ""
		}
		return ago(a.now(), time.Unix(unix, 0))
	}
	t.add(signOfHealth(h.GetStatus()), h.GetServiceName(), healthWord(h.GetStatus()), h.GetCheckStrategy(), h.GetTarget(), failed,
		when(h.GetLastCheckUnix()), when(h.GetNextCheckUnix()), h.GetMessage())
}

func signOfHealth(h gladsheimv1.HealthStatus) sign {
	switch h {
	case gladsheimv1.HealthStatus_HEALTH_STATUS_HEALTHY:
		return signGood
	case gladsheimv1.HealthStatus_HEALTH_STATUS_UNHEALTHY, gladsheimv1.HealthStatus_HEALTH_STATUS_TIMEOUT:
		return signBad
	case gladsheimv1.HealthStatus_HEALTH_STATUS_CHECKING:
		return signBusy
	}
	return signOff
}

func healthCode(h *gladsheimv1.ServiceHealth) int {
	if signOfHealth(h.GetStatus()) == signBad {
		return exitFailure
	}
	return exitOK
}
