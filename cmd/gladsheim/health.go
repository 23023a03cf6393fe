package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/gladsheim/gladsheim/agent/service"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

func (a *app) healthCommand() *cobra.Command {
	var now, checks bool
	c := &cobra.Command{
		Use:   "health [NAME…]",
		Short: "Show how services are; exit with 1 if one is unhealthy, 3 if one does not run",
		Long: `Show how services are, all of them if none is named.

Exits with 1 if one is unhealthy, and with 3 if one does not run that shall: it has
crashed, waits for its next attempt, or for what it requires, or is starting or stopping.
One that is named shall run, or have done its job; of the others it is no fault to be
stopped.

With --now each is checked at once, and the answer is waited for; then it exits with 1
if such a check fails, though that counts for nothing else. With --checks the latest
checks of each are shown, at most 64, the latest first.`,
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
				err = each(cmd.Context(), a, names, answers[*vital]{
					ask:   func(ctx context.Context, name string) (*vital, error) { return a.feel(ctx, name, now) },
					show:  func(v *vital) error { a.addHealth(t, v); return nil },
					judge: func(v *vital) int { return v.code(true) },
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

// vital is how a service is and, where that is not known, how it stands.
type vital struct {
	*gladsheimv1.ServiceHealth
	stands *gladsheimv1.ServiceStatus // nil when it runs, and its checks say how it is
	now    bool                       // it was checked just now
}

// sign is how it is; of a check that was asked for, what that said.
func (v *vital) sign() sign {
	if v.now && v.GetLastCheckFailed() {
		return signBad
	}
	return signOfHealth(v.GetStatus())
}

// feel asks how a service is, with now at once.
func (a *app) feel(ctx context.Context, name string, now bool) (*vital, error) {
	ctx, cancel := a.question(ctx)
	defer cancel()
	var h *gladsheimv1.ServiceHealth
	var err error
	if now {
		h, err = a.client.CheckNow(ctx, &gladsheimv1.CheckNowRequest{ServiceName: name})
	} else {
		h, err = a.client.GetServiceHealth(ctx, &gladsheimv1.ServiceHealthRequest{ServiceName: name})
	}
	if err != nil || h.GetStatus() != gladsheimv1.HealthStatus_HEALTH_STATUS_UNKNOWN {
		return &vital{ServiceHealth: h, now: now}, err
	}
	st, err := a.client.GetServiceStatus(ctx, &gladsheimv1.ServiceStatusRequest{ServiceName: name})
	return &vital{h, st, now}, err
}

// down tells whether it does not serve: nothing of it runs, or not yet, or not any more. One
// that has done its job is not.
func (v *vital) down() bool {
	switch v.stands.GetPhase() {
	case service.Crashed.String(), service.Backoff.String(), service.Waiting.String(), service.Stopped.String(), service.Held.String():
		return !v.stands.GetCompleted()
	case service.Launching.String(), service.Starting.String(), service.Stopping.String(), service.Clearing.String():
		return true
	}
	return false
}

// code is the exit code for it; wanted says that it was named, and shall run.
func (v *vital) code(wanted bool) int {
	idle := v.stands.GetState() == gladsheimv1.ServiceState_SERVICE_STATE_STOPPED
	switch {
	case v.sign() == signBad:
		return exitFailure
	case v.down() && (wanted || !idle):
		return exitNotRunning
	}
	return exitOK
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
			v := &vital{s.GetHealthStatus(), s, false}
			unwell = max(unwell, v.code(false))
			return a.present(v, func() error { a.addHealth(t, v); return nil })
		})
	if err != nil {
		return err
	}
	return worstOf(max(worst, unwell))
}

func (a *app) addHealth(t *table, h *vital) {
	mark, message := h.sign(), h.GetMessage()
	if h.down() {
		mark, message = signOf(h.stands.GetState()), a.plight(h.stands)
	}
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
	t.add(mark, h.GetServiceName(), healthWord(h.GetStatus()), h.GetCheckStrategy(), h.GetTarget(), failed,
		when(h.GetLastCheckUnix()), when(h.GetNextCheckUnix()), message)
}

// plight says why a service does not serve.
func (a *app) plight(st *gladsheimv1.ServiceStatus) string {
	switch {
	case st.GetNextAttemptUnixMs() != 0:
		return "it has ended; next start " + ago(a.now(), fromMillis(st.GetNextAttemptUnixMs()))
	case st.GetWaitingFor() != "":
		return "it " + st.GetWaitingFor()
	case st.GetHook() != "":
		return "it is " + st.GetPhase() + ": " + st.GetHook()
	}
	return "it is " + st.GetPhase()
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
