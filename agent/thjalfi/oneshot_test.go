package thjalfi

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends/fake"
)

func oneshot(d *service.Spec) { d.Type = service.TypeOneshot }

func within(limit time.Duration) func(*service.Spec) {
	return func(d *service.Spec) { d.Bounded, d.Ready.Timeout = true, limit }
}

// ends is what jobs come to, one after the other, each after so long.
func (s *stage) ends(after time.Duration, exits ...service.Exit) {
	var scripts []fake.Script
	for _, x := range exits {
		scripts = append(scripts, fake.Script{End: &fake.End{After: after, Exit: x}})
	}
	s.script(scripts...)
}

func TestAJobIsOverWhenItHasEnded(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.ends(time.Hour, service.Exit{})
		c := s.start(oneshot)
		s.is(service.Running)
		s.pending(c)
		require.False(t, s.status().Completed())
		pass(time.Hour - 1)
		s.pending(c)
		s.refused(s.start(oneshot), service.AlreadyRunning, service.ReasonAlreadyRunning)
		pass(1)
		s.ok(c)
		s.is(service.Stopped)
		require.True(t, s.status().Completed())
		require.False(t, s.status().Machine.Up, "a reboot would run it again")
		require.Equal(t, service.VerdictClean, s.lastExit().Verdict)
		s.saw("launching starting running clearing stopped")

		again := s.start(oneshot)
		s.pending(again)
		require.False(t, s.status().Completed(), "one is under way")
		pass(time.Hour)
		s.ok(again)
		require.Equal(t, 2, s.host.Launches(web))
	})
}

func TestAJobThatFailsIsToldAndTriedAgain(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.ends(time.Minute, service.Exit{Code: 7}, service.Exit{})
		c := s.start(oneshot)
		pass(time.Minute)
		s.refused(c, service.Unlaunchable, service.ReasonJobFailed)
		require.ErrorContains(t, c.err, "exit code 7")
		var told *service.Error
		require.ErrorAs(t, c.err, &told)
		require.Equal(t, []string{"the end of web.1 from 0"}, told.LastLines)
		s.is(service.Backoff)
		require.False(t, s.status().Completed())
		pass(2*time.Second + time.Minute) // the wait is give or take a fifth
		s.is(service.Stopped)
		require.True(t, s.status().Completed())
		require.Zero(t, s.status().Machine.Failures)
	})
}

func TestAJobThatFailsForGood(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.ends(time.Minute, service.Exit{Code: 7})
		c := s.start(oneshot, never)
		pass(time.Minute)
		s.refused(c, service.Unlaunchable, service.ReasonJobFailed)
		s.is(service.Crashed)
		require.False(t, s.status().Completed())
	})
}

func TestAJobGoesOnWithoutItsCaller(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.ends(time.Hour, service.Exit{})
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		c := begin(func() error { return s.Start(ctx, web, s.plan(oneshot)) })
		pass(time.Minute)
		s.refused(c, service.Timeout, service.Timeout.DefaultReason())
		s.is(service.Running)
		pass(time.Hour)
		require.True(t, s.status().Completed())
	})
}

// Without a bound of its own a job takes as long as it likes, whatever others have to
// become ready.
func TestAJobMayTakeLong(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.ends(240*time.Hour, service.Exit{})
		c := s.start(oneshot)
		pass(240 * time.Hour)
		s.ok(c)
	})
}

func TestAJobIsBounded(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.ends(time.Hour, service.Exit{})
		c := s.start(oneshot, never, within(time.Minute))
		pass(time.Minute - 1)
		s.is(service.Running)
		pass(time.Second)
		s.refused(c, service.Timeout, service.ReasonStartupTimeout)
		require.ErrorContains(t, c.err, "its job was not done within 1m0s (ready.timeout)")
		s.is(service.Crashed)
		require.Equal(t, service.VerdictStartupTime, s.lastExit().Verdict)
	})
}

// The time of a job goes on over the end of the agent, and stands still while it is frozen.
func TestTheTimeOfAJob(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.ends(time.Hour, service.Exit{})
		s.start(oneshot, never, within(time.Minute))
		pass(40 * time.Second)
		s.succeed(forEver)
		s.is(service.Running)
		pass(20*time.Second - 1)
		s.is(service.Running)
		pass(time.Second)
		s.is(service.Crashed)
	})
	play(t, func(t *testing.T, s *stage) {
		s.ends(time.Hour, service.Exit{})
		s.start(oneshot, never, within(time.Minute))
		require.NoError(t, s.Freeze(t.Context(), web, "bob"))
		pass(30 * time.Minute)
		s.is(service.Running)
		require.NoError(t, s.Thaw(t.Context(), web, "bob"))
		pass(time.Minute - 1)
		s.is(service.Running)
		pass(time.Second)
		s.is(service.Crashed)
	})
}

func TestAStopEndsAJob(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.ends(time.Hour, service.Exit{})
		c := s.start(oneshot)
		s.ok(s.stop())
		s.refused(c, service.Conflict, service.Conflict.DefaultReason())
		s.is(service.Stopped)
		require.False(t, s.status().Completed())
		require.Equal(t, service.VerdictStopped, s.lastExit().Verdict)
	})
}

// An agent that is killed amid a job leaves it running; the next one knows how it ends, and
// tells whoever asks again.
func TestAJobOutlivesTheAgent(t *testing.T) {
	for _, tt := range []struct {
		exit   service.Exit
		reason service.Reason
	}{{service.Exit{}, ""}, {service.Exit{Code: 3}, service.ReasonJobFailed}} {
		play(t, func(t *testing.T, s *stage) {
			s.shim = true
			s.ends(time.Hour, tt.exit)
			ask := func() *call {
				plan := s.plan(oneshot, never)
				plan.Options.Request = service.Request{ID: "x", Body: "y"}
				return begin(func() error { return s.Start(context.Background(), web, plan) })
			}
			ask()
			pass(time.Minute)
			s.succeed(forEver)
			s.is(service.Running)
			retry := ask()
			s.pending(retry)
			pass(time.Hour)
			if tt.reason == "" {
				s.ok(retry)
				require.True(t, s.status().Completed())
			} else {
				s.refused(retry, service.Unlaunchable, tt.reason)
			}
			s.succeed(forEver)
			late := ask()
			require.True(t, late.over())
			require.Equal(t, retry.err == nil, late.err == nil, "%v", late.err)
			require.Equal(t, 1, s.host.Launches(web))
			require.Equal(t, tt.reason == "", s.status().Completed())
		})
	}
}

// What somebody has stopped its schedule leaves alone, over the end of the agent, until
// somebody starts it.
func TestAStopPausesTheSchedule(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.ends(time.Minute, service.Exit{})
		run := func(replace bool) *call {
			plan := s.plan(oneshot)
			plan.Actor = "schedule"
			return begin(func() error { return s.Run(context.Background(), web, plan, replace) })
		}
		rest := func() *call {
			return begin(func() error { return s.Stop(context.Background(), web, service.StopOptions{Actor: "bob", Pause: true}) })
		}
		c := run(false)
		pass(time.Minute)
		s.ok(c)
		s.ok(rest())
		require.True(t, s.status().Machine.Paused)
		s.ok(rest())
		s.is(service.Stopped)
		s.refused(run(false), service.Conflict, service.Conflict.DefaultReason())
		s.refused(run(true), service.Conflict, service.Conflict.DefaultReason())
		s.succeed(forEver)
		require.True(t, s.status().Machine.Paused)
		s.refused(run(false), service.Conflict, service.Conflict.DefaultReason())
		c = s.start(oneshot)
		require.False(t, s.status().Machine.Paused)
		ended := rest()
		pass(time.Second)
		s.ok(ended)
		s.refused(c, service.Conflict, service.Conflict.DefaultReason())
		s.refused(run(false), service.Conflict, service.Conflict.DefaultReason())
		require.Equal(t, 2, s.host.Launches(web))
	})
}

func TestARunReplacesTheOneBefore(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.ends(time.Minute, service.Exit{})
		plan := s.plan(oneshot)
		c := begin(func() error { return s.Run(context.Background(), web, plan, false) })
		pass(30 * time.Second)
		next := begin(func() error { return s.Run(context.Background(), web, plan, true) })
		synctest.Wait()
		require.EqualValues(t, 2, s.status().Machine.Incarnation)
		pass(time.Minute)
		s.ok(c)
		s.ok(next)
		s.alive(0)
	})
}
