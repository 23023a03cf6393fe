package thjalfi

import (
	"fmt"
	"sync/atomic"
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
		s.refused(start, service.Conflict, "CONFLICT")
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
		s.refused(start, service.Conflict, "CONFLICT")
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
		s.refused(start, service.Conflict, "CONFLICT")
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
		s.refused(start, service.Conflict, "CONFLICT")
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
		require.Equal(t, []string{fmt.Sprintf("the end of web.%d from %d", x.Incarnation, x.Incarnation-1)}, x.LastLines)
	})
}

// Limits hold, and warnings count, as long as what they are of.
func TestLimitsEndWithTheService(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.running(func(d *service.Spec) { d.Limits[service.PidsMax] = service.Of(9); d.Warnings.Memory = 33 })
		require.Equal(t, service.Of(9), s.status().Applied[service.PidsMax].Applied)
		require.InDelta(t, 33, s.status().Warnings.Memory, 0)
		s.disk.Publish(web, service.NoticeViolation, "memory-warning", "", func(s *service.Status) { s.Violations[service.MemoryWarning] = time.Now() })
		s.ok(s.stop())
		require.Zero(t, s.status().Applied)
		require.Zero(t, s.status().Violations)
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

// Whoever asks again is answered again, and the service is told again.
func TestWithoutForceAStopMayBeRepeated(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		var signals atomic.Int32
		s.fault = func(operation string) error {
			if operation == "signal" {
				signals.Add(1)
			}
			return nil
		}
		s.script(fake.Script{Stubborn: true})
		s.running(noForce)
		for round := range int32(3) {
			c := s.stop()
			pass(10*time.Second - 1)
			s.pending(c)
			pass(1)
			s.refused(c, service.Timeout, service.ReasonStopTimeout)
			require.Equal(t, 2*(round+1), signals.Load(), "the signal, and SIGCONT")
		}
		s.alive(1)
	})
}

// A later stop may be less patient.
func TestStopWithAnotherTimeoutWhileItStops(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{Stubborn: true})
		s.running()
		first := s.stop()
		grace := time.Second
		second := begin(func() error { return s.Stop(t.Context(), web, service.StopOptions{Timeout: &grace}) })
		third := s.stop() // has no timeout of its own, so it changes none
		pass(time.Second)
		for _, c := range []*call{first, second, third} {
			s.ok(c)
		}
		require.Equal(t, "bob", s.lastExit().RequestedBy, "who asked first")
	})
}

// A kill that fails leaves it alive; the stop before it was patient with it.
func TestKillWhileItStopsOutlivesNoTimeout(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{Unkillable: true})
		s.running()
		s.stop()
		s.kill()
		pass(time.Minute)
		s.host.Free(web)
		pass(time.Minute)
		s.is(service.Stopped)
		require.False(t, s.lastExit().ForceKilled, "it was killed because somebody asked")
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

// One who is stopped (SIGSTOP) can not heed SIGTERM, so it is continued, too.
func TestStopSendsTheSignalOfTheDefinition(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.running(func(d *service.Spec) { d.Stop.Signal = syscall.SIGUSR1 })
		s.ok(s.stop())
		require.Equal(t, service.Exit{Signal: syscall.SIGUSR1}, s.lastExit().Exit)
	})
}

// TestDisplaced: that somebody moved the main process is told once, by each agent;
// it is served as before.
func TestDisplaced(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.running()
		told := func() (n int) {
			for _, reason := range s.disk.told() {
				if reason == "displaced" {
					n++
				}
			}
			return n
		}
		require.Zero(t, told())
		s.host.Displace(web)
		synctest.Wait()
		require.Equal(t, 1, told())
		s.is(service.Running)
		s.alive(1)
		s.ok(s.restart())
		require.Equal(t, 1, told(), "the next incarnation is in its place")
		s.alive(1)
		s.ok(s.stop())
		s.alive(0)
	})
}
