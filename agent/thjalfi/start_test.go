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

func TestStartAndStop(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.running()
		s.alive(1)
		h, err := s.Handle("look at", web)
		require.NoError(t, err)
		require.Equal(t, h.Ref(), s.status().Ref)
		require.Equal(t, 1, s.prober.attending())
		require.Equal(t, "alice", s.status().LastActor)
		require.Equal(t, time.Now(), s.status().Started)
		r, _ := s.disk.get(web)
		require.Equal(t, h.Ref(), r.Ref)
		require.Equal(t, time.Now(), r.Started)

		s.refused(s.start(), service.AlreadyRunning, service.ReasonAlreadyRunning)
		pass(time.Minute)
		s.ok(s.stop())
		s.is(service.Stopped)
		s.alive(0)
		require.Zero(t, s.prober.attending())
		s.saw("launching starting running stopping clearing stopped")
		require.Equal(t, time.Now(), s.status().Ended)
		require.Empty(t, s.status().Error)
		_, err = s.Handle("look at", web)
		require.Equal(t, service.NotRunning, service.KindOf(err))
		s.refused(s.stop(), service.NotRunning, service.ReasonNotRunning)
		s.refused(s.kill(), service.NotRunning, service.ReasonNotRunning)
	})
}

func TestUnknownService(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		other, ctx := service.MustName("other"), t.Context()
		_, limits := s.SetLimits(ctx, other, service.Limits{}, false, "alice")
		_, handle := s.Handle("look at", other)
		for _, err := range []error{
			s.Start(ctx, other, s.plan()), s.Restart(ctx, other, s.plan(), service.StopOptions{}),
			s.Stop(ctx, other, service.StopOptions{}), s.Remove(ctx, other), limits, handle,
		} {
			require.Equal(t, service.NotFound, service.KindOf(err), "%v", err)
		}
	})
}

func TestStartWaitsForReadiness(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		c := s.start(readyByTCP)
		pass(29 * time.Second)
		s.pending(c)
		s.is(service.Starting)
		require.Zero(t, s.prober.attending(), "health is not asked before it is ready")
		close(s.prober.ready)
		synctest.Wait()
		s.ok(c)
		pass(time.Minute)
		s.is(service.Running)
		s.saw("launching starting running")
	})
}

func TestStartupTimeoutKills(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{Stubborn: true})
		c := s.start(readyByTCP, never)
		pass(30 * time.Second)
		s.is(service.Stopping)
		s.pending(c)
		pass(10 * time.Second)
		s.refused(c, service.Timeout, service.ReasonStartupTimeout)
		s.alive(0)
		s.saw("launching starting stopping clearing crashed")
		x := s.lastExit()
		require.Equal(t, service.VerdictStartupTime, x.Verdict)
		require.True(t, x.ForceKilled)
		require.Empty(t, x.RequestedBy)
		require.Contains(t, s.status().Error, "not ready within 30s")
	})
}

// The time to become ready counts from when it waits at its gate, however long
// the launch has queued before, and until it is ready.
func TestStartupTimeoutDuringLaunch(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{LaunchTime: time.Hour})
		c := s.start(never)
		pass(time.Hour - 1)
		s.is(service.Launching)
		pass(1)
		s.ok(c)
	})
	play(t, func(t *testing.T, s *stage) {
		s.slow = time.Hour
		c := s.start(never)
		pass(30 * time.Second)
		s.refused(c, service.Timeout, service.ReasonStartupTimeout)
		s.alive(0)
		require.Zero(t, s.host.Runs(web))
		s.saw("launching stopping crashed")
		x := s.lastExit()
		require.Equal(t, service.VerdictStartupTime, x.Verdict)
		require.Equal(t, service.NeverRan, x.Exit)
		require.Empty(t, x.LastLines, "they would be another one's")
	})
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{LaunchTime: time.Minute})
		s.slow = 20 * time.Second
		c := s.start(never, readyByTCP)
		pass(time.Minute + 29*time.Second)
		s.is(service.Starting)
		pass(time.Second)
		s.refused(c, service.Timeout, service.ReasonStartupTimeout)
		s.alive(0)
	})
}

// When it is we who slept, the service is not to blame (invariant I11).
func TestStartupTimeoutAfterOurOwnStall(t *testing.T) {
	for i := range 30 { // which of two that are ready comes first is left to chance
		asleep := []time.Duration{time.Minute, 30 * time.Second, 30*time.Second + awake/2}[i%3] // its time is 30 s
		play(t, func(t *testing.T, s *stage) {
			c := s.start(never, readyByTCP)
			a, err := s.find("test", web)
			require.NoError(t, err)
			go func() { a.inbox <- func() { time.Sleep(asleep) } }()
			pass(time.Second)
			s.prober.become()
			pass(time.Minute)
			s.ok(c)
			s.is(service.Running)
		})
	}
	play(t, func(t *testing.T, s *stage) { // it has its time, as long as we are awake
		c := s.start(never, readyByTCP)
		a, err := s.find("test", web)
		require.NoError(t, err)
		pass(10*time.Second + 1)
		go func() { a.inbox <- func() { time.Sleep(time.Hour) } }()
		pass(time.Hour)
		pass(19*time.Second - 1)
		s.pending(c)
		s.is(service.Starting)
		pass(1)
		s.refused(c, service.Timeout, service.ReasonStartupTimeout)
	})
}

func TestPermanentLaunchFailureIsNotRetried(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{LaunchError: &service.Error{
			Op: "launch", Service: web, Kind: service.Unlaunchable, Reason: service.ReasonExecNotFound, Permanent: true, Err: errors.New("no such file"),
		}})
		s.refused(s.start(), service.Unlaunchable, service.ReasonExecNotFound)
		pass(time.Hour)
		s.is(service.Crashed)
		s.saw("launching crashed")
		require.Equal(t, 1, s.host.Launches(web))
		x := s.lastExit()
		require.Equal(t, service.VerdictLaunchFailed, x.Verdict)
		require.Equal(t, service.NeverRan, x.Exit)
		require.Empty(t, x.LastLines)
		require.Contains(t, x.Message, "no such file")
		require.Contains(t, s.status().Error, "no such file")

		s.script(fake.Script{})
		s.running()
		require.Empty(t, s.status().Error)
	})
}

// A launch whose output has nowhere to go fails before anything is begun, and is
// tried again like any other.
func TestNoOutlet(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.noOutlet.Store(&service.Error{Op: "start", Service: web, Kind: service.HostUnavailable, Err: errors.New("no journal")})
		s.refused(s.start(), service.HostUnavailable, "HOST_UNAVAILABLE")
		require.Contains(t, s.status().Error, "no journal")
		require.Zero(t, s.host.Launches(web))
		x := s.lastExit()
		require.Equal(t, service.VerdictLaunchFailed, x.Verdict)
		require.Empty(t, x.LastLines)

		s.noOutlet.Store(nil)
		pass(time.Second)
		s.is(service.Running)
	})
}

// That the output can not be provided for is no failure of the service.
func TestNoRoomForOutput(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.noOutlet.Store(&service.Error{Op: "start", Service: web, Kind: service.HostUnavailable, Err: ErrNoRoom})
		s.refused(s.start(), service.HostUnavailable, "HOST_UNAVAILABLE")
		pass(time.Hour)
		require.Equal(t, service.Backoff, s.status().Machine.State)
		require.Zero(t, s.status().Machine.Failures)
		require.Contains(t, s.status().Error, ErrNoRoom.Error())
		require.Empty(t, s.disk.exitsOf(web))
		s.noOutlet.Store(nil)
		pass(time.Minute)
		s.is(service.Running)
		require.EqualValues(t, 1, s.status().Machine.Incarnation)
	})
}

func TestTransientLaunchFailureIsRetried(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		busy := &service.Error{Op: "launch", Service: web, Kind: service.Unlaunchable, Reason: service.ReasonNoResources, Err: errors.New("EAGAIN")}
		s.script(fake.Script{LaunchError: busy}, fake.Script{LaunchError: busy}, fake.Script{})
		s.refused(s.start(), service.Unlaunchable, service.ReasonNoResources)
		s.is(service.Backoff)
		pass(time.Second)
		require.Equal(t, 2, s.host.Launches(web))
		pass(2 * time.Second)
		s.is(service.Running)
		s.saw("launching backoff launching backoff launching starting running")
	})
}

func TestStartDuringBackoffDoesNotWait(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.running()
		s.host.Crash(web, service.Exit{Code: 1})
		synctest.Wait()
		s.is(service.Backoff)
		s.running()
		require.Zero(t, s.status().Machine.Failures, "somebody asked")
		pass(time.Hour)
		require.Equal(t, 2, s.host.Launches(web), "the attempt that was due is not made any more")
	})
}

func TestStartWhoseProgramEndsIsTold(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{End: &fake.End{After: time.Second, Exit: service.Exit{Code: 3}}})
		c := s.start(readyByTCP)
		pass(time.Second)
		s.refused(c, service.Unlaunchable, service.ReasonExitedEarly)
		require.ErrorContains(t, c.err, "exit code 3")
		s.is(service.Backoff)
	})
}

func TestStartWhoseProgramEndsAtOnceIsTold(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{End: &fake.End{Exit: service.Exit{Code: 3}}})
		s.refused(s.start(never), service.Unlaunchable, service.ReasonExitedEarly)
		s.saw("launching starting clearing crashed")
	})
}

// A start whose intent can not be recorded does not happen.
func TestUnrecordedIntent(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		full := errors.New("no space left on device")
		s.disk.failWith(func(Record) error { return full })
		c := s.start(never)
		require.True(t, c.over())
		require.ErrorIs(t, c.err, full)
		require.Equal(t, service.HostUnavailable, service.KindOf(c.err))
		require.Zero(t, s.host.Launches(web))
		require.Equal(t, service.Backoff, s.status().Machine.State)
		require.Empty(t, s.disk.exitsOf(web), "it is no failure of the service")
		pass(time.Hour)
		require.Equal(t, service.Backoff, s.status().Machine.State)
		require.ErrorIs(t, c.err, full)
		require.Contains(t, s.status().Error, full.Error())
		require.Zero(t, s.status().Machine.Failures)
		s.disk.failWith(nil)
		pass(time.Minute)
		s.is(service.Running)
		require.EqualValues(t, 1, s.status().Machine.Incarnation)
		require.Zero(t, s.status().Machine.Failures)
	})
}

// A relaunch by the policy waits until it can be recorded, and does not count; a start
// that somebody asks for meanwhile is the same.
func TestUnrecordedRelaunch(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		full := errors.New("no space left on device")
		s.running()
		s.lax = true
		s.disk.failWith(func(Record) error { return full })
		s.host.Crash(web, service.Exit{Code: 1})
		pass(time.Hour)
		require.Equal(t, service.Backoff, s.status().Machine.State)
		require.Equal(t, 1, s.status().Machine.Failures)
		require.Contains(t, s.status().Error, full.Error())
		require.Len(t, s.disk.exitsOf(web), 1)
		require.ErrorIs(t, s.start().err, full)
		s.disk.failWith(nil)
		s.ok(s.start())
		require.EqualValues(t, 2, s.status().Machine.Incarnation)
		require.Equal(t, 2, s.host.Launches(web))
		s.ok(s.stop())
		s.is(service.Stopped)
	})
}

// What runs is not stopped for a restart that can not be recorded.
func TestUnrecordedRestart(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		full := errors.New("no space left on device")
		s.running()
		s.disk.failWith(func(r Record) error {
			if r.Machine.State == service.Stopping {
				return full
			}
			return nil
		})
		c := s.restart()
		s.refused(c, service.HostUnavailable, "HOST_UNAVAILABLE")
		require.ErrorIs(t, c.err, full)
		require.ErrorContains(t, c.err, "it runs on")
		pass(time.Hour)
		s.is(service.Running)
		s.alive(1)
		require.Equal(t, 1, s.host.Launches(web))
		require.Empty(t, s.disk.exitsOf(web))
		s.disk.failWith(nil)
		s.ok(s.restart())
		require.Equal(t, 2, s.host.Launches(web))
	})
}

// The program does not run before its identity is recorded.
func TestUnrecordedIdentity(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		full := errors.New("no space left on device")
		s.disk.failWith(func(r Record) error {
			if r.Ref.PID != 0 {
				return full
			}
			return nil
		})
		c := s.start(never)
		require.True(t, c.over())
		require.ErrorIs(t, c.err, full)
		require.Equal(t, 1, s.host.Launches(web))
		require.Zero(t, s.host.Runs(web))
		s.alive(0)
	})
}

func TestCallerGoesAway(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{LaunchTime: 5 * time.Second, Stubborn: true})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		c := begin(func() error { return s.Start(ctx, web, s.plan()) })
		pass(time.Second)
		s.refused(c, service.Timeout, "TIMEOUT")
		require.ErrorContains(t, c.err, "goes on without you")
		pass(4 * time.Second)
		s.is(service.Running)

		ctx, leave := context.WithCancel(t.Context())
		c = begin(func() error { return s.Stop(ctx, web, service.StopOptions{Actor: "bob"}) })
		s.pending(c)
		leave()
		synctest.Wait()
		s.refused(c, service.Cancelled, "CANCELLED")
		pass(10 * time.Second)
		s.is(service.Stopped)
		s.alive(0)
	})
}

// Two who ask for a start while it stops get the same fresh incarnation.
func TestStartWhileStoppingWaitsForAFreshIncarnation(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{Term: &fake.End{After: 3 * time.Second}})
		s.running()
		stop := s.stop()
		start := s.start()
		again := s.start()
		s.pending(stop)
		s.pending(start)
		require.Equal(t, service.PublicRestarting, s.status().Machine.Public())
		pass(3 * time.Second)
		s.ok(stop)
		s.ok(start)
		s.ok(again)
		require.Equal(t, uint64(2), s.status().Machine.Incarnation)
		require.Equal(t, 2, s.host.Launches(web))
		s.alive(1)
		s.saw("launching starting running stopping clearing launching starting running")
		x := s.lastExit()
		require.Equal(t, service.VerdictStopped, x.Verdict)
		require.Equal(t, "bob", x.RequestedBy, "who asked for the end, not who started it again")
		require.True(t, s.status().Ended.IsZero(), "it lives")
	})
}

// Who asked for the end does not wait for what follows it.
func TestStopIsToldBeforeTheNextLaunch(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{Term: &fake.End{After: time.Second}}, fake.Script{LaunchTime: time.Minute})
		s.running()
		stop := s.stop()
		start := s.start()
		pass(time.Second)
		s.ok(stop)
		s.pending(start)
	})
}

// A start taken while it stops uses the plan of that start.
func TestStartWhileStoppingUsesItsOwnPlan(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{Term: &fake.End{After: 3 * time.Second}})
		s.running()
		s.stop()
		start := s.start(func(d *service.Spec) {
			d.Exec = []string{"/bin/other"}
			d.Restart.MaxAttempts = 7
			d.Stop.ForceKill = false
		})
		pass(3 * time.Second)
		s.ok(start)
		require.Equal(t, "/bin/other", s.host.Processes()[0].Command)
		require.Equal(t, 7, s.status().Machine.Policy.MaxAttempts)
		require.False(t, s.status().Machine.ForceKill)
	})
}
