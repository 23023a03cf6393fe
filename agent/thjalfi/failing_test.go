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

func TestUnkillable(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{Unkillable: true}, fake.Script{})
		s.running()
		stop := s.stop()
		pass(10 * time.Second) // the grace
		s.pending(stop)
		pass(clearTimeout)
		s.refused(stop, service.Timeout, service.ReasonUnkillable)
		require.ErrorContains(t, stop.err, "would not die")
		s.is(service.Stopping)
		s.alive(1)
		require.Contains(t, s.status().Error, "would not die")
		s.refused(s.start(), service.Conflict, service.ReasonPreviousAlive)
		s.refused(s.restart(), service.Conflict, service.ReasonPreviousAlive)

		kill := s.kill()
		pass(time.Minute)
		s.refused(kill, service.Timeout, service.ReasonUnkillable)
		s.is(service.Stopping)

		s.host.Free(web)
		pass(retryClear + 1)
		s.is(service.Stopped)
		s.alive(0)
		require.Empty(t, s.status().Error)
		require.True(t, s.lastExit().ForceKilled)
		s.running()
	})
}

// A child that would not die keeps the service from being started again.
func TestUnkillableLeftovers(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{Children: 3, Unkillable: true}, fake.Script{})
		s.running()
		s.host.Crash(web, service.Exit{Code: 1})
		synctest.Wait()
		s.is(service.Clearing)
		pass(clearTimeout)
		s.refused(s.start(), service.Conflict, service.ReasonPreviousAlive)
		stop := s.stop()
		pass(time.Minute)
		s.refused(stop, service.Timeout, service.ReasonUnkillable)
		s.is(service.Clearing)
		require.Equal(t, 1, s.host.Launches(web))
		s.host.Free(web)
		pass(retryClear + 1)
		s.is(service.Stopped)
		s.running()
	})
}

// A failure to release is told and repeated, and ends by itself.
func TestReleaseFails(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		attempts := 0
		s.fault = func(operation string) error {
			if operation == "release" {
				if attempts++; attempts <= 3 {
					return errors.New("rmdir: device or resource busy")
				}
			}
			return nil
		}
		s.running()
		stop := s.stop()
		s.refused(stop, service.Timeout, service.ReasonUnkillable)
		require.ErrorContains(t, stop.err, "rmdir")
		s.is(service.Clearing)
		again := s.stop()
		s.pending(again)
		pass(retryClear)
		s.refused(again, service.Timeout, service.ReasonUnkillable)
		pass(2 * retryClear)
		s.is(service.Stopped)
		require.Equal(t, 4, attempts)
		s.saw("launching starting running stopping clearing stopped")
		require.Len(t, s.disk.exitsOf(web), 1)
	})
}

// What would not be cleared although nothing of it lives is told as the backend
// tells it, and keeps the next incarnation away all the same.
func TestReleaseFailsForTheHost(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		attempts := 0
		s.fault = func(operation string) error {
			if operation == "release" {
				if attempts++; attempts <= 2 {
					return &service.Error{Op: "clear", Service: web, Kind: service.HostUnavailable, Err: errors.New("the bus restarts")}
				}
			}
			return nil
		}
		s.running()
		s.refused(s.stop(), service.HostUnavailable, "HOST_UNAVAILABLE")
		s.is(service.Clearing)
		require.Contains(t, s.status().Error, "the bus restarts")
		s.refused(s.start(), service.Conflict, service.ReasonPreviousAlive)
		s.refused(s.restart(), service.Conflict, service.ReasonPreviousAlive)
		again := s.stop()
		pass(retryClear)
		s.refused(again, service.HostUnavailable, "HOST_UNAVAILABLE")
		pass(retryClear)
		s.is(service.Stopped)
		s.running()
	})
	play(t, func(t *testing.T, s *stage) { // what went wrong before the end came keeps nothing away
		free := make(chan struct{})
		s.fault = func(operation string) error {
			switch operation {
			case "signal":
				return &service.Error{Op: "signal", Service: web, Kind: service.HostUnavailable, Err: errors.New("EPERM")}
			case "release":
				<-free
			}
			return nil
		}
		s.running()
		s.refused(s.stop(), service.HostUnavailable, "HOST_UNAVAILABLE")
		pass(10 * time.Second) // the grace
		s.is(service.Clearing)
		start := s.start()
		s.pending(start)
		close(free)
		synctest.Wait()
		s.ok(start)
	})
}

// With force_kill=false a kill that somebody asked for is repeated as well.
func TestKillFails(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		attempts := 0
		s.fault = func(operation string) error {
			if operation == "kill" {
				if attempts++; attempts <= 2 {
					return errors.New("cgroup.kill: input/output error")
				}
			}
			return nil
		}
		s.script(fake.Script{Stubborn: true})
		s.running(noForce)
		kill := s.kill()
		s.refused(kill, service.Timeout, service.ReasonUnkillable)
		s.alive(1)
		pass(2 * retryClear)
		s.is(service.Stopped)
		s.alive(0)
		require.False(t, s.lastExit().ForceKilled, "it did not outlive a timeout")
	})
}

func TestSignalFails(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.fault = func(operation string) error {
			if operation == "signal" {
				return &service.Error{Op: "signal", Service: web, Kind: service.HostUnavailable, Err: errors.New("EPERM")}
			}
			return nil
		}
		s.running()
		stop := s.stop()
		s.refused(stop, service.HostUnavailable, "HOST_UNAVAILABLE")
		pass(10 * time.Second)
		s.is(service.Stopped)
		s.alive(0)
	})
}

// A stop is carried out even if it can not be recorded, and then its caller
// hears that it may be undone.
func TestUnrecordedStop(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.running()
		s.lax = true
		s.disk.failWith(func(Record) error { return errors.New("no space left on device") })
		stop := s.stop()
		s.alive(0)
		require.Equal(t, service.Stopped, s.status().Machine.State)
		s.refused(stop, service.HostUnavailable, "HOST_UNAVAILABLE")
		require.ErrorContains(t, stop.err, "no space left on device")
		require.Contains(t, s.disk.told(), "unrecorded")
	})
	play(t, func(t *testing.T, s *stage) { // the intent is recorded, so that it can not be undone
		s.running()
		s.lax = true
		s.disk.failWith(func(r Record) error {
			if r.Machine.State == service.Stopped {
				return errors.New("no space left on device")
			}
			return nil
		})
		s.ok(s.stop())
		s.disk.failWith(nil)
		s.succeed(forEver)
		s.is(service.Stopped)
		s.alive(0)
		require.Equal(t, 1, s.host.Launches(web))
	})
}

// Once there is room again a stop of what has ended already is recorded.
func TestUnrecordedStopCanBeRepeated(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.running()
		s.lax = true
		s.disk.failWith(func(Record) error { return errors.New("no space left on device") })
		s.refused(s.stop(), service.HostUnavailable, "HOST_UNAVAILABLE")
		s.refused(s.stop(), service.HostUnavailable, "HOST_UNAVAILABLE")
		s.disk.failWith(nil)
		s.ok(s.stop())
		s.is(service.Stopped)
		s.refused(s.stop(), service.NotRunning, service.ReasonNotRunning)
		s.succeed(forEver)
		s.is(service.Stopped)
		require.Equal(t, 1, s.host.Launches(web))
	})
}

// Whoever waits for what is to follow an end hears that the end can not be had.
func TestRestartOfWhatWillNotEnd(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{Stubborn: true}, fake.Script{})
		s.running(noForce)
		restart := s.restart()
		start := s.start()
		pass(10 * time.Second)
		s.refused(restart, service.Timeout, service.ReasonStopTimeout)
		s.refused(start, service.Timeout, service.ReasonStopTimeout)
		s.alive(1)
	})
}

// A caller that has gone leaves nothing behind, however long the end takes.
func TestWaitersWhoWentAway(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{Stubborn: true})
		s.running(func(d *service.Spec) { d.Stop.Timeout = time.Hour })
		for range 100 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			begin(func() error { return s.Stop(ctx, web, service.StopOptions{}) })
			pass(time.Second)
			cancel()
		}
		a, err := s.find("test", web)
		require.NoError(t, err)
		waiters := make(chan int, 1)
		a.inbox <- func() { waiters <- len(a.waiters) }
		require.Equal(t, 1, <-waiters)
	})
}

// Limits that can not be recorded are not said to be kept.
func TestLimitsThatCanNotBeRecorded(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.running()
		s.disk.failWith(func(Record) error { return errors.New("no space left on device") })
		_, err := s.SetLimits(t.Context(), web, service.Limits{service.PidsMax: service.Of(9)}, false, "dora")
		require.Equal(t, service.HostUnavailable, service.KindOf(err))
		require.ErrorContains(t, err, "no space left")
	})
}

// What was written of an end counts; what is found out a second time does not.
func TestShownIsWhatWasBuriedFirst(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{End: &fake.End{After: time.Second, Exit: service.Exit{Signal: 9}, OOM: service.OOMOwn}})
		s.running(never)
		s.disk.failWith(func(r Record) error { // the agent gets no further than the exit record
			if r.Machine.State == service.Crashed {
				s.life.Store(0)
				return errDead
			}
			return nil
		})
		pass(time.Second)
		s.disk.failWith(nil)
		s.succeed(forEver)
		s.is(service.Crashed)
		require.Equal(t, service.VerdictOwnOOM, s.lastExit().Verdict)
		require.Len(t, s.disk.exitsOf(web), 1)
	})
}

// An agent that dies between the removal of what was left and the exit record takes
// the counters along if it could not record them: nobody knows any more who sent
// SIGKILL.
func TestCountersThatWereLost(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{End: &fake.End{After: time.Second, Exit: service.Exit{Signal: 9}, OOM: service.OOMOwn}})
		s.running(never)
		s.disk.failWith(func(r Record) error {
			if r.Remains != nil {
				return errors.New("no space left on device")
			}
			return nil
		})
		s.disk.buryWith(func() error { s.life.Store(0); return errDead })
		pass(time.Second)
		s.disk.buryWith(nil)
		s.disk.failWith(nil)
		s.succeed(forEver)
		s.is(service.Crashed)
		x := s.lastExit()
		require.Equal(t, service.VerdictUnknown, x.Verdict)
		require.Contains(t, x.Message, "counters")
	})
	play(t, func(t *testing.T, s *stage) { // one that leaves in order writes them down first
		s.script(fake.Script{End: &fake.End{After: time.Second, Exit: service.Exit{Signal: 9}, OOM: service.OOMOwn}})
		s.fault = func(operation string) error {
			if operation == "release" {
				s.Thjalfi.stop()
			}
			return nil
		}
		s.running(never)
		pass(time.Second)
		s.succeed(forEver)
		s.is(service.Crashed)
		require.Equal(t, service.VerdictOwnOOM, s.lastExit().Verdict)
	})
}

func TestUnwritableExitRecord(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.running()
		s.disk.buryWith(func() error { return errors.New("no space left on device") })
		s.ok(s.stop())
		require.NotNil(t, s.status().LastExit)
		require.Contains(t, s.status().LastExit.Message, "could not be written: no space left on device")
	})
}
