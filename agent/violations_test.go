package agent

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends/fake"
)

// greedy is a definition of a service that may use 100 MiB, and is throttled, and one
// that uses 90.
const greedy = `"limits": {"memory_max": "100MiB"}, "enforcement": {"memory": "throttle"}`

func uses90(time.Duration) service.Usage { return service.Usage{Source: "cgroup", Memory: 90 << 20} }

// The ladder sets limits that are not kept: not for the next start, nor by the next agent,
// who would not know when to give them back.
func TestAThrottleIsNotKept(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web, greedy)
		h.host.Script(web, fake.Script{Usage: uses90}, fake.Script{Usage: uses90})
		h.start(web)
		high := func() service.Quota { return h.status(web).Applied[service.MemoryHigh].Applied }
		pass(30 * time.Second)
		require.Equal(t, service.Of(80<<20), high())
		require.Equal(t, []string{"memory-warning"}, h.reasons(web, service.NoticeEnforced))

		h.reopen()
		require.Equal(t, service.Of(service.Unlimited), high())
		require.Empty(t, h.reasons(web, service.NoticeDrift), "it was nobody else")
		pass(time.Minute)
		require.Equal(t, service.Of(80<<20), high(), "this one throttles it as well")

		_, err := h.Restart(t.Context(), web, service.StopOptions{})
		require.NoError(t, err)
		require.NotEqual(t, service.Of(80<<20), high())
	})
}

// A throttle is not what somebody has asked for, and told apart from it, also when it is
// over.
func TestAThrottleIsNobodysWish(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web, greedy)
		began := time.Now()
		h.host.Script(web, fake.Script{Usage: func(time.Duration) service.Usage {
			u := uses90(0)
			if time.Since(began) > time.Minute {
				u.Memory = 10 << 20
			}
			return u
		}})
		h.start(web)
		high := func() service.LimitReport {
			applied, err := h.Limits(t.Context(), web)
			require.NoError(t, err)
			require.Equal(t, applied[service.MemoryHigh].Instead, h.status(web).Applied[service.MemoryHigh].Instead)
			return applied[service.MemoryHigh]
		}
		pass(30 * time.Second)
		level := service.Of(80 << 20)
		require.Equal(t, service.LimitReport{Instead: level, Applied: level, Effective: level, Enforced: true}, high())
		_, err := h.SetLimits(t.Context(), web, service.Limits{service.PidsMax: service.Of(7)}, service.Warnings{}, false, "dora")
		require.NoError(t, err)
		require.Equal(t, level, high().Instead, "somebody has set something else")
		pass(time.Minute)
		require.EqualValues(t, 1, h.status(web).Measures[service.MeasureThrottle], "to give a limit back is none")
		none := service.Of(service.Unlimited)
		require.Equal(t, service.LimitReport{Applied: none, Effective: none, Enforced: true}, high())
	})
}

// Who sets a limit that is throttled has his will, also while the throttle is on its way.
func TestAThrottleYields(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web, greedy)
		h.host.Script(web, fake.Script{Usage: uses90})
		h.start(web)
		pass(30 * time.Second)
		applied, err := h.SetLimits(t.Context(), web, service.Limits{service.MemoryHigh: service.Of(95 << 20)}, service.Warnings{}, false, "dora")
		require.NoError(t, err)
		require.Equal(t, service.Of(95<<20), applied[service.MemoryHigh].Applied)
		require.Equal(t, service.Of(95<<20), applied[service.MemoryHigh].Requested)
		require.False(t, applied[service.MemoryHigh].Instead.Set)
		pass(10 * time.Minute)
		require.Equal(t, service.Of(95<<20), h.status(web).Applied[service.MemoryHigh].Applied)
		require.Len(t, h.reasons(web, service.NoticeEnforced), 1)
	})
}

// One that stays above its level is ended, and begun again by its policy.
func TestWhoUsesTooMuchIsEnded(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web, `"limits": {"memory_max": "100MiB"}, "enforcement": {"memory": "stop", "throttle_after": "5s", "stop_after": "20s"}`)
		h.host.Script(web, fake.Script{Usage: uses90}, fake.Script{})
		first := h.start(web).Machine.Incarnation
		pass(2 * time.Minute)
		h.is(web, service.Running)
		s := h.status(web)
		require.Equal(t, first+1, s.Machine.Incarnation)
		require.Equal(t, service.VerdictExceeded, s.LastExit.Verdict)
		require.Contains(t, s.LastExit.Message, "above its memory-warning level")
		want := service.Measures{service.MeasureWarn: 1, service.MeasureThrottle: 1, service.MeasureStop: 1}
		require.Equal(t, want, s.Measures, "each step counts")
		require.Zero(t, s.Violations)
	})
}

// What a service used too much of is over with its incarnation, which is told once, and
// is no warning.
func TestViolationsEndWithTheService(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web, `"limits": {"memory_max": "100MiB"}`)
		h.host.Script(web, fake.Script{Usage: uses90}, fake.Script{Usage: uses90})
		h.start(web)
		pass(20 * time.Second)
		require.Equal(t, []string{"memory-warning"}, h.reasons(web, service.NoticeViolation))
		_, err := h.Restart(t.Context(), web, service.StopOptions{})
		require.NoError(t, err)
		require.Equal(t, []string{"memory-warning"}, h.reasons(web, service.NoticeOver))
		pass(20 * time.Second)
		require.Len(t, h.reasons(web, service.NoticeViolation), 2)
		h.stop(web)
		pass(time.Minute)
		require.Len(t, h.reasons(web, service.NoticeOver), 2)
		require.Zero(t, h.status(web).Violations)
		for _, n := range h.Kept(0) {
			if n.Kind == service.NoticeOver {
				require.Contains(t, n.Detail, "ended with the service, after ")
			}
		}
		require.Contains(t, h.log.String(), "level=WARN msg=violation service=web")
		require.Contains(t, h.log.String(), "level=INFO msg=violation-over service=web")
	})
}
