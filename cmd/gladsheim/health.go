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
	return &cobra.Command{
		Use:               "health [NAME…]",
		Short:             "Show how services are; exit with 1 if one is unhealthy",
		Args:              anyNames,
		ValidArgsFunction: a.completeNames,
		RunE: func(cmd *cobra.Command, names []string) error {
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
