package thjalfi

import (
	"errors"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends/fake"
)

func TestStopDuringSlowLaunch(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{LaunchTime: 20 * time.Second})
		start := s.start()
		pass(time.Second)
		stop := s.stop()
		s.ok(stop)
		s.refused(start, service.Cancelled, "CANCELLED")
		require.ErrorContains(t, start.err, "bob asked for it to stop")
		require.Zero(t, s.host.Runs(web))
		s.saw("launching stopping stopped")
		x := s.lastExit()
		require.Equal(t, "bob", x.RequestedBy)
		require.Equal(t, service.VerdictStopped, x.Verdict)
		pass(time.Hour)
		require.Equal(t, 1, s.host.Launches(web))
	})
}

func TestStopDuringReadinessWait(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		start := s.start(readyByTCP)
		pass(time.Second)
		s.ok(s.stop())
		s.refused(start, service.Cancelled, "CANCELLED")
		s.saw("launching starting stopping clearing stopped")
		close(s.prober.ready)
		pass(time.Hour)
		s.is(service.Stopped)
		s.alive(0)
	})
}

func TestKill(t *testing.T) {
	for name, begun := range map[string]func(*stage){
		"running":  func(s *stage) { s.running() },
		"starting": func(s *stage) { s.start(readyByTCP) },
		"stopping": func(s *stage) { s.running(); s.stop() },
	} {
		t.Run(name, func(t *testing.T) {
			play(t, func(t *testing.T, s *stage) {
				s.script(fake.Script{Stubborn: true, Children: 2})
				begun(s)
				s.ok(s.kill())
				s.is(service.Stopped)
				s.alive(0)
				x := s.lastExit()
				require.Equal(t, service.Exit{Signal: syscall.SIGKILL}, x.Exit)
				require.Equal(t, service.VerdictStopped, x.Verdict)
				require.Equal(t, "bob", x.RequestedBy)
				require.False(t, x.ForceKilled, "it did not outlive a timeout")
			})
		})
	}
}

func TestKillDuringLaunch(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{LaunchTime: 20 * time.Second})
		start := s.start()
		s.ok(s.kill())
		s.refused(start, service.Cancelled, "CANCELLED")
		require.Zero(t, s.host.Runs(web))
	})
}

// A launch that goes through although it was given up is ended at once.
func TestKillDuringALaunchThatGoesThrough(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.dogged = true
		s.script(fake.Script{LaunchTime: 20 * time.Second, Stubborn: true, Children: 1})
		start := s.start()
		stop := s.stop()
		kill := s.kill()
		s.pending(stop)
		pass(20 * time.Second)
		s.ok(stop)
		s.ok(kill)
		s.refused(start, service.Cancelled, "CANCELLED")
		s.alive(0)
		s.saw("launching stopping clearing stopped")
		require.Equal(t, service.VerdictStopped, s.lastExit().Verdict)
	})
}

func TestStubbornServiceIsKilledAfterItsGrace(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{Stubborn: true})
		s.running()
		c := s.stop()
		pass(10*time.Second - 1)
		s.pending(c)
		s.is(service.Stopping)
		pass(1)
		s.ok(c)
		s.alive(0)
		s.saw("launching starting running stopping clearing stopped")
		x := s.lastExit()
		require.Equal(t, service.VerdictStopped, x.Verdict)
		require.True(t, x.ForceKilled)
		require.Equal(t, service.Exit{Signal: syscall.SIGKILL}, x.Exit)
		require.Equal(t, []string{"the end of web.log"}, x.LastLines)
	})
}

func TestStopWithATimeoutOfItsOwn(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{Stubborn: true})
		s.running()
		grace := time.Second
		c := begin(func() error { return s.Stop(t.Context(), web, service.StopOptions{Timeout: &grace, Actor: "bob"}) })
		pass(time.Second)
		s.ok(c)
		s.alive(0)

		s.running()
		c = s.stop()
		pass(9 * time.Second)
		s.pending(c)
		pass(time.Second)
		s.ok(c)
	})
}

// An end within the grace is no kill, even at its last moment.
func TestEndAtTheLastMoment(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{Term: &fake.End{After: 10*time.Second - 1}})
		s.running()
		c := s.stop()
		pass(10 * time.Second)
		s.ok(c)
		require.False(t, s.lastExit().ForceKilled)
		require.Equal(t, service.Exit{}, s.lastExit().Exit)
	})
}

func TestWithoutForceAStopMayFail(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{Stubborn: true})
		s.running(noForce)
		c := s.stop()
		pass(10 * time.Second)
		s.refused(c, service.Timeout, service.ReasonStopTimeout)
		require.ErrorContains(t, c.err, "stop.force_kill")
		s.is(service.Stopping)
		s.alive(1)
		require.Contains(t, s.status().Error, "did not end within 10s")
		pass(time.Hour)
		s.is(service.Stopping)
		s.alive(1)

		s.host.Crash(web, service.Exit{Code: 4})
		synctest.Wait()
		s.is(service.Stopped)
		x := s.lastExit()
		require.Equal(t, service.VerdictStopped, x.Verdict)
		require.False(t, x.ForceKilled)
		require.Equal(t, "bob", x.RequestedBy)
		pass(time.Hour)
		s.is(service.Stopped)
	})
}

func TestWithoutForceAKillStillKills(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{Stubborn: true})
		s.running(noForce)
		stop := s.stop()
		s.ok(s.kill())
		s.ok(stop)
		s.alive(0)
	})
}

// Nothing follows a stop that was asked for, whatever was to follow before
// (invariant I5).
func TestStopDuringBackoff(t *testing.T) {
	for name, end := range map[string]func(*stage) *call{"stop": (*stage).stop, "kill": (*stage).kill} {
		t.Run(name, func(t *testing.T) {
			play(t, func(t *testing.T, s *stage) {
				s.running()
				s.host.Crash(web, service.Exit{Code: 1})
				synctest.Wait()
				s.is(service.Backoff)
				s.ok(end(s))
				s.is(service.Stopped)
				pass(time.Hour)
				s.is(service.Stopped)
				require.Equal(t, 1, s.host.Launches(web))
				require.Empty(t, s.status().Error)
			})
		})
	}
}

func TestStopDuringClearing(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{Children: 1, Unkillable: true})
		s.running()
		s.host.Crash(web, service.Exit{Code: 1})
		synctest.Wait()
		s.is(service.Clearing)
		stop := s.stop()
		s.pending(stop)
		s.host.Free(web)
		synctest.Wait()
		s.ok(stop)
		pass(time.Hour)
		s.is(service.Stopped)
		require.Equal(t, 1, s.host.Launches(web))
		s.saw("launching starting running clearing stopped")
		x := s.lastExit()
		require.Equal(t, service.VerdictCrash, x.Verdict, "it crashed before anybody asked")
		require.Empty(t, x.RequestedBy)
		require.Equal(t, 1, x.Remains.Leftovers)
	})
}

func TestStopOfACrashedServiceAcknowledges(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.running(never)
		s.host.Crash(web, service.Exit{Code: 1})
		synctest.Wait()
		s.is(service.Crashed)
		s.ok(s.stop())
		s.is(service.Stopped)
		require.Empty(t, s.status().Error)
	})
}

func TestStopWhileItIsStoppedForItsHealth(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{Term: &fake.End{After: 3 * time.Second}})
		s.running()
		s.prober.sicken()
		s.is(service.Stopping)
		stop := s.stop()
		pass(3 * time.Second)
		s.ok(stop)
		pass(time.Hour)
		s.is(service.Stopped)
		require.Equal(t, 1, s.host.Launches(web))
		require.Equal(t, service.VerdictUnhealthy, s.lastExit().Verdict, "that is why it was ended")
	})
}

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

func TestUnwritableExitRecord(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.running()
		s.disk.buries = func() error { return errors.New("no space left on device") }
		s.ok(s.stop())
		require.NotNil(t, s.status().LastExit)
		require.Contains(t, s.status().LastExit.Message, "could not be written: no space left on device")
	})
}

// One who is stopped (SIGSTOP) can not heed SIGTERM, so it is continued, too.
func TestStopSendsTheSignalOfTheDefinition(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.running(func(d *service.Spec) { d.Stop.Signal = syscall.SIGUSR1 })
		s.ok(s.stop())
		require.Equal(t, service.Exit{Signal: syscall.SIGUSR1}, s.lastExit().Exit)
	})
}
