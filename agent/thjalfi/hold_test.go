package thjalfi

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends/fake"
)

const holder = "the agent, to save the battery"

func (s *stage) hold() *call {
	return begin(func() error { return s.Hold(context.Background(), web, nil, holder) })
}

func (s *stage) isHeld() {
	s.t.Helper()
	s.is(service.Held)
	s.alive(0)
	require.Equal(s.t, heldText, s.status().Error)
	require.Zero(s.t, s.status().Machine.Failures)
	require.Zero(s.t, s.status().Machine.Restarts)
	r, _ := s.disk.get(web)
	require.True(s.t, r.Machine.Up, "it shall run all the same")
}

func TestHold(t *testing.T) {
	for name, begun := range map[string]func(*stage){
		"running":   func(s *stage) { s.running() },
		"starting":  func(s *stage) { s.start(readyByTCP) },
		"launching": func(s *stage) { s.script(fake.Script{LaunchTime: 20 * time.Second}); s.start(); pass(time.Second) },
	} {
		t.Run(name, func(t *testing.T) {
			play(t, func(t *testing.T, s *stage) {
				begun(s)
				s.ok(s.hold())
				s.isHeld()
				x := s.lastExit()
				require.Equal(t, service.VerdictStopped, x.Verdict)
				require.Equal(t, holder, x.RequestedBy)
				require.Contains(t, x.Message, "stopped by "+holder)
				s.succeed(forEver)
				require.Equal(t, heldText, s.status().Error, "the next agent knows as well")
				pass(time.Hour)
				s.alive(0)
				s.ok(s.hold())
				start := s.start()
				pass(20 * time.Second)
				s.ok(start)
				s.is(service.Running)
				require.Empty(t, s.status().Error)
			})
		})
	}
}

// One that waits for its next attempt waits on without one; its failures stay.
func TestHoldInBackoff(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.running()
		s.crash(service.Exit{Code: 1})
		s.is(service.Backoff)
		s.ok(s.hold())
		s.is(service.Held)
		pass(time.Hour)
		require.Equal(t, 1, s.host.Launches(web))
		require.Equal(t, 1, s.status().Machine.Failures)
	})
}

func TestStopWhileHeld(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.running()
		s.ok(s.hold())
		s.ok(s.stop())
		s.is(service.Stopped)
		require.Empty(t, s.status().Error)
		r, _ := s.disk.get(web)
		require.False(t, r.Machine.Up)
		s.ok(s.hold())
		s.is(service.Stopped)
	})
}

// What ends anyway is waited for, and what came of it stays.
func TestHoldDuringAnEnd(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{Stubborn: true})
		s.running()
		stop := s.stop()
		hold := s.hold()
		s.pending(hold)
		pass(10 * time.Second)
		s.ok(stop)
		s.ok(hold)
		s.is(service.Stopped)
	})
}

// What was to be started is not, and the next agent knows that it is to run.
func TestHoldInsteadOfAStart(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		plan := s.plan()
		s.ok(begin(func() error { return s.Hold(context.Background(), web, &plan, holder) }))
		s.isHeld()
		require.Zero(t, s.host.Launches(web))
		s.succeed(forEver)
		s.isHeld()
		s.ok(s.restart())
		s.is(service.Running)
		plan.Actor = "late"
		s.ok(begin(func() error { return s.Hold(context.Background(), web, &plan, holder) }))
		s.is(service.Running)
	})
}

// One that an earlier agent left is ended once it is adopted.
func TestHoldWhileAdopting(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.running()
		s.Close()
		s.disk.reopen()
		s.prober = newProber()
		s.board()
		s.Add(web, s.left())
		s.ok(s.hold())
		s.isHeld()
	})
}

// What fails and ends for that when the battery becomes low is not begun again; nor is
// what somebody restarts, who hears of it.
func TestHoldDuringAFailureAndARestart(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{Stubborn: true}, fake.Script{Stubborn: true})
		s.running()
		s.prober.sicken()
		s.is(service.Stopping)
		hold := s.hold()
		pass(10 * time.Second)
		s.ok(hold)
		s.is(service.Held)
		require.Equal(t, 1, s.status().Machine.Failures)
		require.Equal(t, service.VerdictUnhealthy, s.lastExit().Verdict)

		s.ok(s.start())
		restart := s.restart()
		s.is(service.Stopping)
		hold = s.hold()
		pass(10 * time.Second)
		s.ok(hold)
		s.is(service.Held)
		s.refused(restart, service.Conflict, "CONFLICT")
		require.Equal(t, 2, s.host.Launches(web))
	})
}

// An order to end what ends already, or is frozen, is not taken, and whoever gave it is
// told.
func TestExceedThatComesToNothing(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{Stubborn: true})
		s.running()
		exceed := func() error { return s.Exceed(t.Context(), web, 1, "too much") }
		require.NoError(t, s.Freeze(t.Context(), web, "dora"))
		require.Equal(t, service.Conflict, service.KindOf(exceed()))
		require.NoError(t, s.Thaw(t.Context(), web, "dora"))
		stop := s.stop()
		require.Equal(t, service.NotRunning, service.KindOf(exceed()))
		pass(10 * time.Second)
		s.ok(stop)
		require.Equal(t, service.VerdictStopped, s.lastExit().Verdict)
	})
}
