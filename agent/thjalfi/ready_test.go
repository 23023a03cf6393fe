package thjalfi

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends/fake"
)

func settling(d *service.Spec) { d.Ready.Settle = 5 * time.Second }

func readyByLog(d *service.Spec) { d.Ready.Type, d.Ready.Pattern = service.CheckLog, "up" }

// lastLines are those that come with an error.
func lastLines(t *testing.T, err error) []string {
	t.Helper()
	e, ok := errors.AsType[*service.Error](err)
	require.True(t, ok, "%v", err)
	return e.LastLines
}

func TestSettle(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{LaunchTime: time.Minute})
		c := s.start(settling)
		pass(time.Minute + 5*time.Second - 1)
		s.pending(c)
		s.is(service.Starting)
		require.Zero(t, s.prober.attending())
		pass(1)
		s.ok(c)
		s.is(service.Running)
		s.ok(s.stop())
		s.saw("launching starting running stopping clearing stopped")
	})
}

func TestAnEndBeforeItHasSettledIsAFailedStart(t *testing.T) {
	for name, after := range map[string]time.Duration{"before": 2 * time.Second, "just before": 5*time.Second - 1} {
		t.Run(name, func(t *testing.T) {
			play(t, func(t *testing.T, s *stage) {
				s.script(fake.Script{End: &fake.End{After: after, Exit: service.Exit{Code: 3}}})
				c := s.start(settling, never)
				pass(5 * time.Second)
				s.refused(c, service.Unlaunchable, service.ReasonExitedEarly)
				require.ErrorContains(t, c.err, "it ended: exit code 3")
				require.Equal(t, []string{"the end of web.1 from 0"}, lastLines(t, c.err))
				require.Equal(t, service.Crashed, s.status().Machine.State)
				s.saw("launching starting clearing crashed")
			})
		})
	}
}

func TestStopOfWhatSettles(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		c := s.start(settling)
		pass(time.Second)
		s.ok(s.stop())
		s.refused(c, service.Conflict, "CONFLICT")
		s.saw("launching starting stopping clearing stopped")
	})
}

// What the end of an agent interrupts goes on, over a change of the clock of the wall.
func TestSettleOverTheEndOfTheAgent(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.start(settling)
		pass(3 * time.Second)
		s.succeed(forEver)
		s.is(service.Starting)
		pass(2*time.Second - 1)
		s.is(service.Starting)
		pass(1)
		s.is(service.Running)
	})
	play(t, func(t *testing.T, s *stage) {
		s.start(settling)
		pass(3 * time.Second)
		s.Close()
		s.setClock(time.Hour)
		pass(time.Second)
		s.succeed(forEver)
		pass(time.Second - 1)
		s.is(service.Starting)
		pass(1)
		s.is(service.Running)
	})
	play(t, func(t *testing.T, s *stage) {
		s.start(settling)
		pass(3 * time.Second)
		s.Close()
		s.disk.reopen()
		s.board()
		r := s.left()
		r.Machine.State, r.Due = service.Launching, 0 // as it is before it is known to run
		s.Add(web, r)
		pass(5*time.Second - 1)
		s.is(service.Starting)
		pass(1)
		s.is(service.Running)
	})
}

// What is frozen does not run.
func TestSettleOfTheFrozen(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		c := s.start(settling)
		pass(4 * time.Second)
		s.host.Freeze(web, "")
		pass(time.Minute)
		s.pending(c)
		s.host.Thaw(web)
		pass(5*time.Second - 1)
		s.pending(c)
		pass(1)
		s.ok(c)
	})
}

func TestReadyByLog(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		c := s.start(readyByLog)
		pass(10 * time.Second)
		s.pending(c)
		s.succeed(forEver) // the next one looks, too
		require.True(t, c.over())
		s.is(service.Starting)
		require.Equal(t, []string{"web.1 from 0", "web.1 from 0"}, s.awaited())
		close(s.line)
		synctest.Wait()
		s.is(service.Running)
		s.ok(s.stop())
	})
}

// Whoever waits is told why it was not ready, and what it wrote; a retry is, too.
func TestAFailedStartTellsTheLastLines(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		plan := s.plan(readyByLog, never)
		plan.Options.Request = service.Request{ID: "one", Body: "a"}
		start := func() *call { return begin(func() error { return s.Start(context.Background(), web, plan) }) }
		c := start()
		pass(30 * time.Second)
		s.refused(c, service.Timeout, service.ReasonStartupTimeout)
		require.ErrorContains(t, c.err, "it was not ready within 30s (ready: log up): no line matched")
		require.Equal(t, []string{"the end of web.1 from 0"}, lastLines(t, c.err))
		require.Contains(t, s.status().Error, "no line matched")

		again := begin(func() error {
			_, err := s.Recall(context.Background(), web, service.Start, "alice", plan.Options.Request)
			return err
		})
		s.refused(again, service.Timeout, service.ReasonStartupTimeout)
		require.Equal(t, []string{"the end of web.1 from 0"}, lastLines(t, again.err))

		s.script(fake.Script{End: &fake.End{Exit: service.Exit{Code: 1}}})
		c = s.start(readyByLog, never)
		s.refused(c, service.Unlaunchable, service.ReasonExitedEarly)
		require.Equal(t, []string{"the end of web.2 from 1"}, lastLines(t, c.err))
		again = begin(func() error {
			_, err := s.Recall(context.Background(), web, service.Start, "alice", plan.Options.Request)
			return err
		})
		s.refused(again, service.Timeout, service.ReasonStartupTimeout)
		require.Empty(t, lastLines(t, again.err), "they are another one's")
	})
}

// A caller who waits no longer does not end the start.
func TestAStartOutlivesItsCaller(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		plan := s.plan(settling)
		c := begin(func() error {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			return s.Start(ctx, web, plan)
		})
		pass(time.Second)
		s.refused(c, service.Timeout, "TIMEOUT")
		require.ErrorContains(t, c.err, "it goes on without you")
		s.is(service.Starting)
		pass(4 * time.Second)
		s.is(service.Running)
	})
}
