package thjalfi

import (
	"errors"
	"fmt"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends/fake"
)

func TestCrashLoopBacksOffAndGivesUp(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.running()
		for attempt, delay := range []time.Duration{1, 2, 4} {
			s.host.Crash(web, service.Exit{Code: 3})
			synctest.Wait()
			s.is(service.Backoff)
			require.Equal(t, time.Now().Add(delay*time.Second), s.status().NextAttempt)
			require.Contains(t, s.status().Error, "exit code 3")
			pass(delay*time.Second - 1)
			s.alive(0)
			pass(1)
			s.is(service.Running)
			require.EqualValues(t, attempt+1, s.status().Machine.Restarts)
			require.Zero(t, s.status().NextAttempt)
		}
		s.host.Crash(web, service.Exit{Code: 3})
		pass(24 * time.Hour)
		s.is(service.Crashed)
		require.Equal(t, 4, s.host.Launches(web))
		require.Equal(t, 4, s.status().Machine.Failures)
		exits := s.disk.exitsOf(web)
		require.Len(t, exits, 4)
		for i, x := range exits {
			require.EqualValues(t, i+1, x.Incarnation)
			require.Equal(t, service.VerdictCrash, x.Verdict)
			require.Equal(t, service.Exit{Code: 3}, x.Exit)
			require.Equal(t, []string{fmt.Sprintf("the end of web.%d from %d", x.Incarnation, x.Incarnation-1)}, x.LastLines)
			require.False(t, x.Started.IsZero())
		}
		s.alive(0)
	})
}

// TestCrashAtAnyMoment crashes a service at each millisecond of its first two
// seconds (P19).
func TestCrashAtAnyMoment(t *testing.T) {
	for after := time.Duration(0); after <= 2*time.Second; after += time.Millisecond {
		play(t, func(t *testing.T, s *stage) {
			s.script(fake.Script{LaunchTime: 100 * time.Millisecond, End: &fake.End{After: after, Exit: service.Exit{Code: 1}}})
			s.start(readyByTCP)
			time.AfterFunc(time.Second, func() { close(s.prober.ready) })
			pass(time.Hour)
			s.is(service.Crashed)
			s.alive(0)
			require.Len(t, s.disk.exitsOf(web), 4, "one attempt and three more")
			require.Equal(t, 4, s.host.Runs(web))
		})
	}
}

func TestEndsAndPolicies(t *testing.T) {
	for _, tt := range []struct {
		name    string
		policy  service.RestartWhen
		exit    service.Exit
		want    service.State
		verdict service.Verdict
	}{
		{"clean end, on failure", service.RestartOnFailure, service.Exit{}, service.Stopped, service.VerdictClean},
		{"clean end, always", service.RestartAlways, service.Exit{}, service.Backoff, service.VerdictClean},
		{"clean end, never", service.RestartNever, service.Exit{}, service.Stopped, service.VerdictClean},
		{"crash, on failure", service.RestartOnFailure, service.Exit{Code: 1}, service.Backoff, service.VerdictCrash},
		{"crash, always", service.RestartAlways, service.Exit{Code: 1}, service.Backoff, service.VerdictCrash},
		{"crash, never", service.RestartNever, service.Exit{Code: 1}, service.Crashed, service.VerdictCrash},
		{"signal", service.RestartOnFailure, service.Exit{Signal: syscall.SIGSEGV, Core: true}, service.Backoff, service.VerdictCrash},
		{"killed from outside", service.RestartOnFailure, service.Exit{Signal: syscall.SIGKILL}, service.Backoff, service.VerdictKilled},
	} {
		t.Run(tt.name, func(t *testing.T) {
			play(t, func(t *testing.T, s *stage) {
				s.running(func(d *service.Spec) { d.Restart.When = tt.policy })
				s.host.Crash(web, tt.exit)
				synctest.Wait()
				s.is(tt.want)
				x := s.lastExit()
				require.Equal(t, tt.exit, x.Exit)
				require.Equal(t, tt.verdict, x.Verdict)
				require.Empty(t, x.RequestedBy)
				pass(time.Second)
				if tt.want == service.Backoff {
					s.is(service.Running)
					return
				}
				require.Equal(t, 1, s.host.Launches(web))
			})
		})
	}
}

// Who ends at once each time waits longer and longer, and has never failed.
func TestCleanEndsForEverAreNoFailures(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{End: &fake.End{After: time.Second}})
		s.running(always)
		for _, delay := range []time.Duration{1, 2, 4, 8, 16, 32, 60, 60} {
			pass(time.Second)
			s.is(service.Backoff)
			require.Equal(t, time.Now().Add(delay*time.Second), s.status().NextAttempt)
			require.Equal(t, delay*time.Second, s.lastExit().Wait)
			pass(delay * time.Second)
			s.is(service.Running)
		}
		pass(24 * time.Hour)
		require.Greater(t, s.host.Launches(web), 24*55)
		require.Zero(t, s.status().Machine.Failures)
		require.Zero(t, s.status().Machine.Recent)
		require.NotContains(t, s.disk.told(), "alert")
		s.ok(s.stop())
		launches := s.host.Launches(web)
		pass(time.Hour)
		require.Equal(t, launches, s.host.Launches(web))
	})
}

// Once it has run for long enough, an end is the first in its row again.
func TestCleanEndsAreForgotten(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		at := func(after time.Duration) fake.Script { return fake.Script{End: &fake.End{After: after}} }
		s.script(at(0), at(0), at(0), at(15*time.Second), at(33*time.Second), at(time.Minute), fake.Script{})
		s.start(always)
		for _, delay := range []time.Duration{1, 2, 4, 8, 1, 1} { // what had waited for 4 s is to run for 16 s, and for 8 s 32 s
			for s.status().Machine.State != service.Backoff {
				pass(100 * time.Millisecond)
			}
			require.Equal(t, delay*time.Second, s.lastExit().Wait)
			pass(delay * time.Second)
		}
		pass(time.Hour)
		s.is(service.Running)
		require.Zero(t, s.status().Machine.InARow())
	})
}

func TestOutOfMemory(t *testing.T) {
	for level, want := range map[service.OOM]service.Verdict{
		service.OOMOwn: service.VerdictOwnOOM, service.OOMAncestor: service.VerdictAncestorOOM, service.OOMHost: service.VerdictHostOOM,
	} {
		play(t, func(t *testing.T, s *stage) {
			s.script(fake.Script{Children: 2})
			s.running()
			s.host.OOMKill(web, level, "/gladsheim")
			synctest.Wait()
			s.is(service.Backoff)
			x := s.lastExit()
			require.Equal(t, want, x.Verdict)
			require.Equal(t, level, x.Remains.OOM)
			require.Contains(t, x.Message, "memory")
		})
	}
}

func TestLeftoversAreKilledAndCounted(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{Children: 3}, fake.Script{})
		s.running()
		s.host.Crash(web, service.Exit{Code: 1})
		pass(time.Second)
		s.is(service.Running)
		s.alive(1)
		require.Len(t, s.host.Processes(), 1)
		require.Equal(t, 3, s.lastExit().Remains.Leftovers)
		require.Contains(t, s.lastExit().Message, "3 processes left over and killed")
	})
}

func TestUnhealthyServiceIsRestartedAsFailed(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{Stubborn: true}, fake.Script{})
		s.running()
		s.prober.sicken()
		s.is(service.Stopping)
		require.Zero(t, s.prober.attending(), "it is not asked any more")
		pass(10 * time.Second)
		s.is(service.Backoff)
		require.Equal(t, 1, s.status().Machine.Failures)
		x := s.lastExit()
		require.Equal(t, service.VerdictUnhealthy, x.Verdict)
		require.True(t, x.ForceKilled)
		require.Empty(t, x.RequestedBy)
		pass(time.Second)
		s.is(service.Running)
		require.Equal(t, 1, s.prober.attending())
		s.saw("launching starting running stopping clearing backoff launching starting running")
	})
}

// News of an earlier incarnation change nothing.
func TestStaleVerdictIsIgnored(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.running()
		s.prober.mu.Lock()
		stale := s.prober.attended[1]
		s.prober.mu.Unlock()
		s.ok(s.restart())
		stale()
		pass(time.Minute)
		s.is(service.Running)
		require.Equal(t, 2, s.host.Launches(web))
	})
}

func TestRestart(t *testing.T) {
	crashed := func(s *stage) {
		s.running()
		s.host.Crash(web, service.Exit{Code: 1})
		synctest.Wait()
		s.is(service.Backoff)
	}
	for _, tt := range []struct {
		name  string
		begin func(*stage)
		want  string
	}{
		{"stopped", func(*stage) {}, "launching starting running"},
		{"running", func(s *stage) { s.running() }, "launching starting running stopping clearing launching starting running"},
		{"stopping", func(s *stage) { s.running(); s.stop() }, "launching starting running stopping clearing launching starting running"},
		{"backoff", crashed, "launching starting running clearing backoff launching starting running"},
		{"launching", func(s *stage) {
			s.script(fake.Script{LaunchTime: time.Hour}, fake.Script{})
			s.start()
		}, "launching stopping launching starting running"},
		{"starting", func(s *stage) { s.start(readyByTCP) }, "launching starting stopping clearing launching starting running"},
		{"crashed", func(s *stage) {
			s.running(never)
			s.host.Crash(web, service.Exit{Code: 1})
			synctest.Wait()
		}, "launching starting running clearing crashed launching starting running"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			play(t, func(t *testing.T, s *stage) {
				s.script(fake.Script{Term: &fake.End{After: time.Second}})
				tt.begin(s)
				c := s.restart()
				pass(time.Second)
				s.ok(c)
				s.saw(tt.want)
				s.alive(1)
				require.Zero(t, s.status().Machine.Restarts, "somebody asked")
				require.Zero(t, s.status().Machine.Failures)
				require.Equal(t, "carol", s.status().LastActor)
			})
		})
	}
}

// Those who wait for a start or a restart are content with a later incarnation.
func TestRestartWhileAStartIsWaitedFor(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		start := s.start(readyByTCP)
		restart := s.restart(readyByTCP)
		s.pending(start)
		close(s.prober.ready)
		synctest.Wait()
		s.ok(start)
		s.ok(restart)
		require.EqualValues(t, 2, s.status().Machine.Incarnation)
		require.Equal(t, service.VerdictStopped, s.disk.exitsOf(web)[0].Verdict)
		require.Equal(t, "carol", s.disk.exitsOf(web)[0].RequestedBy)
	})
}

func TestStopOverridesARestart(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{Term: &fake.End{After: time.Second}})
		s.running()
		restart := s.restart()
		stop := s.stop()
		pass(time.Second)
		s.ok(stop)
		s.refused(restart, service.Conflict, "CONFLICT")
		pass(time.Hour)
		s.is(service.Stopped)
		require.Equal(t, 1, s.host.Launches(web))

		// What that restart would have launched is forgotten.
		s.running(func(d *service.Spec) { d.Exec = []string{"/bin/third"} })
		require.Equal(t, "/bin/third", s.host.Processes()[0].Command)
	})
}

func TestRestartByForce(t *testing.T) {
	for name, changes := range map[string][]func(*service.Spec){"": nil, "without force_kill": {noForce}} {
		t.Run(name, func(t *testing.T) {
			play(t, func(t *testing.T, s *stage) {
				s.script(fake.Script{Stubborn: true}, fake.Script{})
				s.running(changes...)
				plan := s.plan()
				c := begin(func() error { return s.Restart(t.Context(), web, plan, service.StopOptions{Force: true}) })
				s.ok(c)
				s.is(service.Running)
				s.alive(1)
				require.False(t, s.disk.exitsOf(web)[0].ForceKilled, "it was given no timeout to outlive")
			})
		})
	}
}

func TestRestartWithATimeoutOfItsOwn(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{Stubborn: true}, fake.Script{})
		s.running()
		grace, plan := time.Second, s.plan()
		c := begin(func() error { return s.Restart(t.Context(), web, plan, service.StopOptions{Timeout: &grace}) })
		pass(time.Second)
		s.ok(c)
	})
}

func TestSetLimits(t *testing.T) {
	var half, tenth service.Limits
	half[service.CPUMax], tenth[service.CPUMax] = service.Of(500_000), service.Of(100_000)
	half[service.PidsMax] = service.Of(10)
	holds := func(s *stage) service.Applied {
		h, err := s.Handle("look at", web)
		require.NoError(s.t, err)
		applied, err := h.Limits(s.t.Context())
		require.NoError(s.t, err)
		return applied
	}
	play(t, func(t *testing.T, s *stage) {
		_, err := s.SetLimits(t.Context(), web, half, false, "dora")
		require.Equal(t, service.NotRunning, service.KindOf(err))

		s.running(func(d *service.Spec) { d.Limits = half })
		pid := s.status().PID()
		applied, err := s.SetLimits(t.Context(), web, tenth, false, "dora")
		require.NoError(t, err)
		require.Equal(t, service.Of(100_000), applied[service.CPUMax].Applied)
		require.Equal(t, service.Of(10), applied[service.PidsMax].Applied, "the others stay")
		require.Equal(t, applied, s.status().Applied)
		require.Equal(t, "dora", s.status().LastActor)
		require.Contains(t, s.disk.details[service.NoticeLimits], "cpu_percent 10% by dora")
		require.Equal(t, pid, s.status().PID())
		r, _ := s.disk.get(web)
		require.Equal(t, tenth.Over(half), r.Limits)

		s.host.Crash(web, service.Exit{Code: 1})
		pass(time.Second)
		s.is(service.Running)
		require.Equal(t, service.Of(100_000), holds(s)[service.CPUMax].Applied, "kept over a restart that nobody asked for")

		s.host.Crash(web, service.Exit{Code: 1})
		synctest.Wait()
		s.is(service.Backoff)
		_, err = s.SetLimits(t.Context(), web, half, false, "dora")
		require.Equal(t, service.NotRunning, service.KindOf(err))
		pass(2 * time.Second)
		require.Equal(t, service.Of(500_000), holds(s)[service.CPUMax].Applied, "set while it waited for its next attempt")

		s.ok(s.restart())
		require.Equal(t, service.Of(service.Unlimited), holds(s)[service.CPUMax].Applied, "the plan of who asks counts")
	})
	play(t, func(t *testing.T, s *stage) { // refused by the backend
		s.fault = func(operation string) error {
			if operation == "limit" {
				return &service.Error{Op: "limit", Service: web, Kind: service.Unenforceable, Err: errors.New("no")}
			}
			return nil
		}
		s.running(func(d *service.Spec) { d.Limits = half })
		before, _ := s.disk.get(web)
		_, err := s.SetLimits(t.Context(), web, tenth, false, "dora")
		require.Equal(t, service.Unenforceable, service.KindOf(err))
		after, _ := s.disk.get(web)
		require.Equal(t, before, after)
		require.Equal(t, "alice", s.status().LastActor)
		require.Equal(t, service.Of(500_000), holds(s)[service.CPUMax].Applied)
	})
	play(t, func(t *testing.T, s *stage) { // during a launch they wait for it
		s.script(fake.Script{LaunchTime: 5 * time.Second})
		start := s.start()
		set := begin(func() error { _, err := s.SetLimits(t.Context(), web, tenth, false, "dora"); return err })
		s.pending(set)
		pass(5 * time.Second)
		s.ok(start)
		s.ok(set)
		require.Equal(t, service.Of(100_000), holds(s)[service.CPUMax].Applied)
	})
}

// Limits that are set while an incarnation ends are those of the one that the
// policy launches next.
func TestSetLimitsWhileItEnds(t *testing.T) {
	var few service.Limits
	few[service.PidsMax] = service.Of(7)
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{Children: 1, Unkillable: true}, fake.Script{})
		s.running()
		s.crash(service.Exit{Code: 1})
		s.is(service.Clearing)
		set := begin(func() error { _, err := s.SetLimits(t.Context(), web, few, false, "dora"); return err })
		s.host.Free(web)
		synctest.Wait()
		s.refused(set, service.NotRunning, service.ReasonNotRunning)
		s.succeed(forEver)
		pass(time.Second)
		s.is(service.Running)
		require.Equal(t, service.Of(7), s.status().Applied[service.PidsMax].Applied)
	})
	play(t, func(t *testing.T, s *stage) { // the main process has ended, and nobody has seen it yet
		s.running()
		s.fault = func(operation string) error {
			if operation == "limit" {
				s.fault = nil
				s.host.Crash(web, service.Exit{Code: 1})
			}
			return nil
		}
		_, err := s.SetLimits(t.Context(), web, few, false, "dora")
		require.Equal(t, service.NotRunning, service.KindOf(err))
		pass(time.Second)
		require.Equal(t, service.Of(7), s.status().Applied[service.PidsMax].Applied)
	})
	play(t, func(t *testing.T, s *stage) { // a launch with the old ones is begun before their turn comes
		s.script(fake.Script{Children: 1, Unkillable: true}, fake.Script{LaunchTime: time.Second})
		s.running(func(d *service.Spec) { d.Restart.Backoff = 0 })
		s.crash(service.Exit{Code: 1})
		restart := s.restart()
		set := begin(func() error { _, err := s.SetLimits(t.Context(), web, few, false, "dora"); return err })
		s.host.Free(web)
		pass(time.Second)
		s.ok(restart)
		s.ok(set)
		require.Equal(t, service.Of(7), s.status().Applied[service.PidsMax].Applied)
	})
	for _, asked := range []bool{true, false} { // one is begun between their turn and that of the backend
		play(t, func(t *testing.T, s *stage) {
			s.running(func(d *service.Spec) { d.Restart.Backoff = 0 })
			busy := make(chan struct{})
			s.fault = func(operation string) error {
				if operation == "limit" {
					<-busy
				}
				return nil
			}
			set := func(l service.Limits) *call {
				return begin(func() error { _, err := s.SetLimits(t.Context(), web, l, false, "dora"); return err })
			}
			set(service.Limits{})
			if asked {
				s.restart()
			}
			last := set(few)
			s.crash(service.Exit{Code: 1})
			close(busy)
			pass(time.Second)
			s.ok(last)
			s.is(service.Running)
			require.Equal(t, 2, s.host.Launches(web))
			require.Equal(t, service.Of(7), s.status().Applied[service.PidsMax].Applied)
		})
	}
}
