package thjalfi

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/backends/fake"
)

// The agent leaves, and the next one takes the service up: the service notices
// nothing (invariant I1).
func TestAdoptRunning(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.running()
		before := s.status()
		pass(time.Minute)
		s.succeed(forEver)
		s.is(service.Running)
		s.saw("adopting running")
		after := s.status()
		require.Equal(t, before.Ref, after.Ref)
		require.Equal(t, before.Started, after.Started)
		require.Equal(t, before.Machine, after.Machine)
		require.Equal(t, before.Applied, after.Applied)
		require.Equal(t, 1, s.host.Launches(web))
		require.Equal(t, 1, s.prober.attending())

		s.host.Crash(web, service.Exit{Code: 1})
		synctest.Wait()
		s.is(service.Backoff)
		require.Equal(t, service.Exit{Unknown: "agent_was_down"}, s.lastExit().Exit, "the kernel tells it to the parent only")
		require.Equal(t, service.VerdictUnknown, s.lastExit().Verdict)
		pass(time.Second)
		s.is(service.Running)
		s.alive(1)
		require.EqualValues(t, 2, s.status().Machine.Incarnation)
		s.ok(s.stop())
		s.alive(0)
	})
}

func TestAdoptStarting(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		start := s.start(readyByTCP)
		s.succeed(forEver)
		s.refused(start, service.HostUnavailable, "HOST_UNAVAILABLE")
		s.is(service.Starting)
		pass(29 * time.Second)
		close(s.prober.ready)
		synctest.Wait()
		s.is(service.Running)
		s.saw("adopting starting running")
		require.Equal(t, 1, s.host.Launches(web))
	})
	play(t, func(t *testing.T, s *stage) { // and it has to be ready in time
		s.start(readyByTCP, never)
		s.succeed(forEver)
		pass(30 * time.Second)
		s.is(service.Crashed)
		s.alive(0)
		require.Equal(t, service.VerdictStartupTime, s.lastExit().Verdict)
	})
}

// An agent that ended before the launch has left an intent, and nothing else.
// That is no failure of the service, whatever its policy (invariant I11).
func TestAdoptWhatWasNeverLaunched(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{LaunchTime: time.Minute}, fake.Script{})
		start := s.start(never)
		s.succeed(forEver)
		s.refused(start, service.HostUnavailable, "HOST_UNAVAILABLE")
		s.is(service.Running)
		s.saw("adopting launching starting running")
		require.Zero(t, s.status().Machine.Failures)
		require.Equal(t, 1, s.host.Runs(web))
		s.neverRan(1)
		s.alive(1)
	})
	play(t, func(t *testing.T, s *stage) { // it was identified, and gave up at its gate
		s.slow = time.Minute
		s.start(never)
		s.slow = 0
		s.succeed(forEver)
		s.is(service.Running)
		s.neverRan(1)
		require.Equal(t, 1, s.host.Runs(web))
	})
}

// unopened is a host that tells of what was adopted that it never got through its gate.
type unopened struct{ backends.Backend }

func (u unopened) Adopt(ctx context.Context, ref service.Ref, l service.Launch) (backends.Handle, error) {
	h, err := u.Backend.Adopt(ctx, ref, l)
	return stillborn{h}, err
}

type stillborn struct{ backends.Handle }

func (stillborn) Exit() service.Exit { return service.NeverRan }

func (stillborn) Exited() <-chan struct{} {
	over := make(chan struct{})
	close(over)
	return over
}

// An agent that ended between the record of whom it launched and the opening of
// the gate has let nothing run. That is no failure either.
func TestAdoptWhatNeverGotThroughItsGate(t *testing.T) {
	for _, stopped := range []bool{false, true} {
		play(t, func(t *testing.T, s *stage) {
			s.running(never)
			ran := s.status().Ref
			s.Close()
			s.disk.reopen()
			s.board()
			left := s.left()
			left.Plan.Backend = unopened{s.backend}
			if stopped {
				left.Record.Machine.Cause, left.Record.Machine.Up = service.CauseAsked, false
			}
			s.Add(web, left)
			synctest.Wait()
			exits := s.disk.exitsOf(web)
			require.Len(t, exits, 1)
			require.Equal(t, ran.Incarnation, exits[0].Incarnation)
			require.Equal(t, service.NeverRan, exits[0].Exit)
			require.Zero(t, s.status().Machine.Failures)
			if stopped {
				s.is(service.Stopped)
				require.Equal(t, service.VerdictStopped, exits[0].Verdict)
				return
			}
			s.is(service.Running)
			s.saw("adopting clearing launching starting running")
			require.Equal(t, service.VerdictLaunchFailed, exits[0].Verdict)
			require.Empty(t, s.status().Error)
			require.Equal(t, "never ran: the agent ended before it was launched", exits[0].Message)
			s.alive(1)
		})
	}
}

// neverRan wants one record of how an incarnation ended, and that it never ran.
func (s *stage) neverRan(incarnation uint64) {
	s.t.Helper()
	exits := s.disk.exitsOf(web)
	require.Len(s.t, exits, 1, "every incarnation has a record (invariant I6)")
	require.Equal(s.t, incarnation, exits[0].Incarnation)
	require.Equal(s.t, service.NeverRan, exits[0].Exit)
	require.Equal(s.t, service.VerdictLaunchFailed, exits[0].Verdict)
}

// A kill whose agent leaves is not told to end first by the next one.
func TestAdoptKilling(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{Unkillable: true})
		s.running(noForce)
		s.kill()
		var signals atomic.Int32
		s.fault = func(operation string) error {
			if operation == "signal" {
				signals.Add(1)
			}
			return nil
		}
		s.succeed(forEver)
		s.is(service.Stopping)
		s.host.Free(web)
		synctest.Wait()
		s.is(service.Stopped)
		require.Zero(t, signals.Load())
	})
}

// A kill, or a stop with a patience of its own, of a service that can not be
// adopted yet is what it was once that can be done.
func TestKillWhileItCanNotBeAdopted(t *testing.T) {
	away := func(s *stage) (comeBack func()) {
		var up atomic.Bool
		s.fault = func(operation string) error {
			if operation == "adopt" && !up.Load() {
				return &service.Error{Op: "adopt", Service: web, Kind: service.HostUnavailable, Err: errors.New("D-Bus does not answer")}
			}
			return nil
		}
		s.succeed(forEver)
		s.is(service.Adopting)
		return func() { up.Store(true) }
	}
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{Stubborn: true})
		s.running(noForce)
		comeBack := away(s)
		s.kill()
		comeBack()
		pass(retryClear)
		s.is(service.Stopped)
		s.alive(0)
	})
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{Stubborn: true})
		s.running()
		comeBack := away(s)
		grace := time.Second
		begin(func() error { return s.Stop(t.Context(), web, service.StopOptions{Timeout: &grace}) })
		comeBack()
		pass(retryClear)
		s.is(service.Stopping)
		pass(grace)
		s.is(service.Stopped)
	})
}

// A stop under way goes on, and nothing follows it (invariant I5).
func TestAdoptStopping(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{Term: &fake.End{After: 15 * time.Second}})
		s.running()
		stop := s.stop()
		s.succeed(forEver)
		s.refused(stop, service.HostUnavailable, "HOST_UNAVAILABLE")
		s.is(service.Stopping)
		s.alive(1)
		pass(10 * time.Second)
		s.is(service.Stopped)
		s.alive(0)
		s.saw("adopting stopping clearing stopped")
		x := s.lastExit()
		require.Equal(t, service.VerdictStopped, x.Verdict)
		require.Equal(t, "bob", x.RequestedBy)
		pass(time.Hour)
		require.Equal(t, 1, s.host.Launches(web))
	})
}

func TestAdoptRestarting(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{Stubborn: true}, fake.Script{})
		s.running()
		s.restart()
		s.succeed(forEver)
		pass(10 * time.Second)
		s.is(service.Running)
		s.saw("adopting stopping clearing launching starting running")
		s.alive(1)
		require.Equal(t, 2, s.host.Launches(web))
	})
}

// It ended while no agent was there.
func TestAdoptGone(t *testing.T) {
	for _, children := range []int{0, 2} {
		play(t, func(t *testing.T, s *stage) {
			s.script(fake.Script{Children: children}, fake.Script{})
			s.running()
			started := s.status().Started
			s.Close()
			pass(time.Minute)
			s.host.Crash(web, service.Exit{Code: 3})
			s.succeed(forEver)
			s.is(service.Backoff)
			s.saw("adopting clearing backoff")
			s.alive(0)
			x := s.lastExit()
			require.Equal(t, service.Exit{Unknown: "agent_was_down"}, x.Exit)
			require.Equal(t, service.VerdictUnknown, x.Verdict)
			require.Equal(t, started, x.Started)
			require.Equal(t, children, x.Remains.Leftovers)
			require.True(t, s.status().Ref.IsZero())
			r, _ := s.disk.get(web)
			require.True(t, r.Ref.IsZero(), "nothing is left to refer to")
			pass(time.Second)
			s.is(service.Running)
			s.alive(1)
		})
	}
}

func TestAdoptBackoff(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.running()
		s.host.Crash(web, service.Exit{Code: 1})
		synctest.Wait()
		s.is(service.Backoff)
		s.succeed(forEver)
		require.Equal(t, service.Backoff, s.status().Machine.State)
		require.Equal(t, time.Now().Add(time.Second), s.status().NextAttempt)
		pass(600 * time.Millisecond)
		s.succeed(forEver)
		require.Equal(t, time.Now().Add(400*time.Millisecond), s.status().NextAttempt, "the wait goes on, and does not begin again")
		pass(400 * time.Millisecond)
		s.is(service.Running)
		s.alive(1)
		require.EqualValues(t, 1, s.status().Machine.Restarts)
	})
	play(t, func(t *testing.T, s *stage) {
		s.running()
		s.host.Crash(web, service.Exit{Code: 1})
		synctest.Wait()
		s.succeed(forEver)
		s.ok(s.stop())
		s.succeed(forEver)
		pass(time.Hour)
		s.alive(0)
		require.Equal(t, 1, s.host.Launches(web))
	})
}

// The wait goes on as if nobody had set the clock (invariant I11).
func TestAdoptBackoffAfterTheClockWasSet(t *testing.T) {
	for _, ahead := range []time.Duration{time.Hour, 10 * 365 * 24 * time.Hour} {
		play(t, func(t *testing.T, s *stage) {
			s.running(func(d *service.Spec) { d.Restart.Backoff, d.Restart.MaxBackoff = time.Minute, time.Minute })
			s.host.Crash(web, service.Exit{Code: 1})
			synctest.Wait()
			pass(20 * time.Second)
			s.Close()
			s.setClock(ahead)
			s.succeed(forEver)
			require.Equal(t, time.Now().Add(40*time.Second), s.status().NextAttempt)
			pass(40*time.Second - 1)
			s.is(service.Backoff)
			pass(1)
			s.is(service.Running)
			require.EqualValues(t, 1, s.status().Machine.Restarts)
		})
	}
}

// What an agent knew of an end survives it.
func TestAdoptClearing(t *testing.T) {
	for _, tt := range []struct {
		exit service.Exit
		want service.State
	}{{service.Exit{}, service.Stopped}, {service.Exit{Code: 7}, service.Backoff}} {
		play(t, func(t *testing.T, s *stage) {
			s.script(fake.Script{Children: 1, Unkillable: true}, fake.Script{})
			s.running()
			s.host.Crash(web, tt.exit)
			synctest.Wait()
			s.is(service.Clearing)
			s.succeed(forEver)
			s.host.Free(web)
			synctest.Wait()
			s.is(tt.want)
			s.saw("adopting clearing " + tt.want.String())
			require.Equal(t, tt.exit, s.lastExit().Exit)
			require.Len(t, s.disk.exitsOf(web), 1)
			s.alive(0)
		})
	}
}

func TestAdoptionThatFailsIsRepeated(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.running()
		var up atomic.Bool
		s.fault = func(operation string) error {
			if operation == "adopt" && !up.Load() {
				return &service.Error{Op: "adopt", Service: web, Kind: service.HostUnavailable, Err: errors.New("D-Bus does not answer")}
			}
			return nil
		}
		s.succeed(forEver)
		pass(10 * retryClear)
		s.is(service.Adopting)
		_, err := s.SetLimits(t.Context(), web, service.Limits{service.PidsMax: service.Of(9)}, false, "dora")
		require.Equal(t, service.HostUnavailable, service.KindOf(err), "it lives, and its limits were not set: %v", err)
		require.ErrorContains(t, err, "D-Bus does not answer")
		require.Equal(t, 1, strings.Count(strings.Join(s.disk.told(), " "), "stuck"), "told once, however often it is tried")
		require.Contains(t, s.status().Error, "D-Bus does not answer")
		s.refused(s.start(), service.AlreadyRunning, service.ReasonAlreadyRunning)
		stop := s.stop()
		pass(retryClear)
		s.refused(stop, service.HostUnavailable, "HOST_UNAVAILABLE")
		s.alive(1)
		up.Store(true)
		pass(retryClear)
		s.is(service.Stopped) // since a stop was asked for
		s.alive(0)
		s.saw("adopting stopping clearing stopped")
		require.Equal(t, 1, s.host.Launches(web))
	})
}

// Incarnations are numbered on from those of which there are exit records.
func TestRestoredWithoutAPlan(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		other := service.MustName("other")
		s.Add(other, Restored{Record: Record{Name: other, Machine: service.Machine{State: service.Stopped, Incarnation: 4}}})
		plan := s.plan()
		plan.Spec.Name = other
		require.NoError(t, s.Start(t.Context(), other, plan))
		r, _ := s.disk.get(other)
		require.EqualValues(t, 5, r.Machine.Incarnation)
	})
}

func TestAddTwiceKeepsTheFirst(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.running()
		s.Add(web, Restored{})
		s.refused(s.start(), service.AlreadyRunning, service.ReasonAlreadyRunning)
	})
}

func TestRemove(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.running()
		require.Equal(t, service.Conflict, service.KindOf(s.Remove(t.Context(), web)))
		s.host.Crash(web, service.Exit{Code: 1})
		synctest.Wait()
		require.Equal(t, service.Conflict, service.KindOf(s.Remove(t.Context(), web)), "it would come back")
		s.ok(s.stop())
		require.NoError(t, s.Remove(t.Context(), web))
		require.Equal(t, service.NotFound, service.KindOf(s.Remove(t.Context(), web)))
		require.Equal(t, service.NotFound, service.KindOf(s.Start(t.Context(), web, s.plan())))
		s.Add(web, Restored{})
		s.running()
	})
}

// A service that is removed writes nothing afterwards: whoever removes it
// removes its records next.
func TestRemoveWaitsForWhatIsBeingWritten(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.running(never)
		s.disk.failWith(func(Record) error { time.Sleep(time.Second); return nil })
		s.host.Crash(web, service.Exit{Code: 1})
		pass(2500 * time.Millisecond) // the records of its end and its remains are written, that of the crash is being written
		require.Equal(t, service.Crashed, s.status().Machine.State)
		var last Record
		remove := begin(func() error {
			err := s.Remove(t.Context(), web)
			last, _ = s.disk.get(web)
			return err
		})
		pass(time.Second)
		s.ok(remove)
		require.Equal(t, service.Crashed, last.Machine.State)
		s.disk.failWith(func(Record) error { t.Error("a record after the end"); return nil })
		pass(time.Minute)
	})
}

// A start that comes while the service is being forgotten is not begun: nothing
// would forget it again.
func TestRemoveAndStartAtOnce(t *testing.T) {
	for range 20 { // which of two that are ready comes first is left to chance
		play(t, func(t *testing.T, s *stage) {
			a, err := s.find("test", web)
			require.NoError(t, err)
			var removed error
			hold := make(chan struct{})
			go func() { a.inbox <- func() { <-hold } }()
			synctest.Wait()
			remove := begin(func() error { removed = s.Remove(t.Context(), web); return removed })
			start := s.start() // found the actor, and waits behind
			close(hold)
			synctest.Wait()
			require.True(t, remove.over() && start.over())
			if removed == nil {
				_, recorded := s.disk.get(web)
				require.False(t, recorded, "an intent was recorded")
				s.refused(start, service.HostUnavailable, "HOST_UNAVAILABLE")
				require.Zero(t, s.host.Launches(web))
			}
		})
	}
}

func TestCloseDuringLaunch(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{LaunchTime: time.Hour})
		start := s.start()
		s.Close()
		synctest.Wait()
		s.refused(start, service.HostUnavailable, "HOST_UNAVAILABLE")
		s.alive(0)
		require.Empty(t, s.host.Processes())
		s.refused(s.start(), service.HostUnavailable, "HOST_UNAVAILABLE")
		s.Add(service.MustName("other"), Restored{})
		require.Equal(t, service.NotFound, service.KindOf(s.Stop(t.Context(), service.MustName("other"), service.StopOptions{})))
	})
}

func TestCloseWhileAwaitingReadiness(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		start := s.start(readyByTCP)
		s.Close()
		synctest.Wait()
		s.refused(start, service.HostUnavailable, "HOST_UNAVAILABLE")
		s.alive(1)
		r, _ := s.disk.get(web)
		require.Equal(t, service.Starting, r.Machine.State)
	})
}

// To close while it kills something unkillable is no failure to kill it.
func TestCloseWhileKilling(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{Unkillable: true})
		s.running()
		kill := s.kill()
		before := time.Now()
		s.Close()
		synctest.Wait()
		require.Equal(t, before, time.Now(), "it does not wait for the kill")
		s.refused(kill, service.HostUnavailable, "HOST_UNAVAILABLE")
		s.alive(1)
		s.host.Free(web)
		s.succeed(forEver)
		s.is(service.Stopped)
	})
}

func TestCloseLeavesRunningServicesAlone(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.running()
		require.Equal(t, 1, s.prober.attending())
		s.Close()
		synctest.Wait()
		s.alive(1)
		require.Zero(t, s.prober.attending())
		s.refused(s.stop(), service.HostUnavailable, "HOST_UNAVAILABLE")
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		require.Error(t, s.Stop(ctx, web, service.StopOptions{}))
		s.alive(1)
	})
}

// PID 1 may wait for the agent to end before it launches anything: who waited for
// that launch first would keep both waiting.
func TestLeaveGivesUpLaunches(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{LaunchTime: time.Hour}, fake.Script{})
		start := s.start()
		synctest.Wait()
		before := time.Now()
		s.Leave()
		synctest.Wait()
		require.Equal(t, before, time.Now())
		s.refused(start, service.HostUnavailable, "HOST_UNAVAILABLE")
		s.alive(0)
		s.succeed(forEver)
		s.alive(1)
		s.is(service.Running)
	})
}

func TestLeaveLetsAStopComeToItsEnd(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{Stubborn: true})
		s.running()
		stop := s.stop()
		synctest.Wait()
		s.Leave()
		pass(10 * time.Second)
		s.ok(stop)
		s.alive(0)
		s.refused(s.start(), service.HostUnavailable, "HOST_UNAVAILABLE")
		s.alive(0)
	})
}

// A launch that was given up at its gate has failed nothing: the time in which it
// was to be ready is over for it.
func TestALaunchGivenUpIsNotLate(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.slow = time.Hour
		start := s.start(readyByTCP)
		synctest.Wait()
		s.Leave()
		synctest.Wait()
		s.refused(start, service.HostUnavailable, "HOST_UNAVAILABLE")
		pass(2 * time.Minute)
		r, _ := s.disk.get(web)
		require.Equal(t, service.Launching, r.Machine.State)
		require.Equal(t, service.CauseNone, r.Machine.Cause)
		s.slow = 0
		s.succeed(forEver)
		s.alive(1)
	})
}
