package thjalfi

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends/fake"
)

func policy(change func(*service.RestartPolicy)) func(*service.Spec) {
	return func(d *service.Spec) { change(&d.Restart) }
}

// often has it tried very often, so that something else decides.
var often = policy(func(p *service.RestartPolicy) { p.MaxAttempts, p.Deterministic = 1000, 0 })

// alerts are how often somebody was called.
func (s *stage) alerts() int {
	return len(slices.DeleteFunc(s.disk.told(), func(r string) bool { return r != "alert" }))
}

// It is given up for failures that are close together, whether or not it ran well in
// between, and those that are longer ago than the window do not count.
func TestAttemptsWithinAWindow(t *testing.T) {
	three := policy(func(p *service.RestartPolicy) { p.MaxAttempts, p.Window = 3, 10*time.Minute })
	play(t, func(t *testing.T, s *stage) {
		s.running(three)
		for i := range 4 {
			pass(2 * time.Minute)
			s.is(service.Running)
			require.Zero(t, s.status().Machine.Failures, "the row is over")
			require.Equal(t, i, s.status().Machine.Recent)
			s.crash(service.Exit{Code: 3})
		}
		s.is(service.Crashed)
		require.Equal(t, service.GaveUpAttempts, s.status().Machine.GaveUp)
		require.Contains(t, s.status().Error, "exit code 3")
		require.Contains(t, s.status().Error, "it failed 4 times within 10m0s (restart.max_attempts is 3)")
		require.Contains(t, s.status().Error, "then gladsheim start web")
		pass(24 * time.Hour)
		require.Equal(t, 4, s.host.Launches(web))
		require.Equal(t, 1, s.alerts())

		s.running(three) // which forgets all of them
		require.Zero(t, s.status().Machine.Recent)
		require.Equal(t, service.GaveUpNot, s.status().Machine.GaveUp)
		s.crash(service.Exit{Code: 3})
		s.is(service.Backoff)
	})
	play(t, func(t *testing.T, s *stage) {
		s.running(three)
		for range 20 { // never four of them within ten minutes
			pass(200 * time.Second)
			s.crash(service.Exit{Code: 3})
			s.is(service.Backoff)
			pass(time.Second)
			require.LessOrEqual(t, s.status().Machine.Recent, 3)
		}
		pass(10 * time.Minute)
		require.Zero(t, s.status().Machine.Recent, "readers see that none counts any more")
	})
}

// The wait begins anew after it has run for four times as long as it waited last, ten
// seconds at least, or for as long as the policy says.
func TestARowOfFailuresIsOver(t *testing.T) {
	for _, tt := range []struct {
		reset time.Duration
		after int // failures
		want  time.Duration
	}{
		{0, 1, 10 * time.Second}, {0, 2, 10 * time.Second}, {0, 3, 16 * time.Second}, {0, 5, 64 * time.Second}, {0, 9, 4 * time.Minute},
		{3 * time.Second, 5, 3 * time.Second}, {time.Hour, 1, time.Hour},
	} {
		play(t, func(t *testing.T, s *stage) {
			s.running(often, policy(func(p *service.RestartPolicy) { p.ResetAfter = tt.reset }))
			for range tt.after {
				s.crash(service.Exit{Code: 1})
				pass(time.Until(s.status().NextAttempt))
				s.is(service.Running)
			}
			pass(tt.want - 1)
			require.Equal(t, tt.after, s.status().Machine.Failures)
			pass(1)
			require.Zero(t, s.status().Machine.Failures)
			s.crash(service.Exit{Code: 1})
			require.Equal(t, time.Second, time.Until(s.status().NextAttempt))
		})
	}
}

// Of a service that is asked how it is, only the time counts in which it was healthy.
func TestWhoIsNotWellIsNotStable(t *testing.T) {
	asked := func(d *service.Spec) { d.Health.Type, d.Health.Address = service.CheckTCP, "127.0.0.1:80" }
	play(t, func(t *testing.T, s *stage) {
		s.running(often, asked)
		s.crash(service.Exit{Code: 1})
		pass(time.Second)
		pass(time.Hour)
		require.Equal(t, 1, s.status().Machine.Failures, "nobody knows that it is well")
		now := time.Now()
		s.wellFrom.Store(&now)
		pass(9 * time.Second)
		require.Equal(t, 1, s.status().Machine.Failures)
		pass(11 * time.Second)
		require.Zero(t, s.status().Machine.Failures)
	})
}

// Those who failed together do not come back together: each waits for its own part of
// what the policy says, give or take a fifth, and never longer than the longest wait.
func TestSpread(t *testing.T) {
	for _, tt := range []struct {
		spread float64
		want   []time.Duration
	}{
		{0, []time.Duration{800, 1600, 3200, 4000}}, {0.5, []time.Duration{1000, 2000, 4000, 5000}}, {1, []time.Duration{1200, 2400, 4800, 5000}},
	} {
		play(t, func(t *testing.T, s *stage) {
			s.spread = tt.spread
			s.running(often, policy(func(p *service.RestartPolicy) { p.MaxBackoff = 5 * time.Second }))
			for _, want := range tt.want {
				want *= time.Millisecond
				s.crash(service.Exit{Code: 1})
				require.InDelta(t, want, time.Until(s.status().NextAttempt), 1)
				require.InDelta(t, want, s.lastExit().Wait, 1)
				pass(want - time.Millisecond)
				s.is(service.Backoff)
				pass(time.Millisecond)
				s.is(service.Running)
			}
		})
	}
}

func TestExitCodes(t *testing.T) {
	rules := policy(func(p *service.RestartPolicy) {
		p.Success = service.Ends{}.And(service.Exit{Code: 3}).And(service.Exit{Signal: syscall.SIGKILL})
		p.Never = service.Ends{}.And(service.Exit{Code: 78}).And(service.Exit{Signal: syscall.SIGSEGV})
	})
	for _, tt := range []struct {
		policy  service.RestartWhen
		exit    service.Exit
		want    service.State
		verdict service.Verdict
	}{
		{service.RestartOnFailure, service.Exit{Code: 3}, service.Stopped, service.VerdictClean},
		{service.RestartAlways, service.Exit{Code: 3}, service.Backoff, service.VerdictClean},
		{service.RestartOnFailure, service.Exit{Signal: syscall.SIGKILL}, service.Stopped, service.VerdictClean},
		{service.RestartOnFailure, service.Exit{Code: 78}, service.Crashed, service.VerdictCrash},
		{service.RestartAlways, service.Exit{Code: 78}, service.Crashed, service.VerdictCrash},
		{service.RestartOnFailure, service.Exit{Signal: syscall.SIGSEGV, Core: true}, service.Crashed, service.VerdictCrash},
		{service.RestartOnFailure, service.Exit{Code: 4}, service.Backoff, service.VerdictCrash},
	} {
		play(t, func(t *testing.T, s *stage) {
			s.running(rules, policy(func(p *service.RestartPolicy) { p.When = tt.policy }))
			s.crash(tt.exit)
			s.is(tt.want)
			require.Equal(t, tt.verdict, s.lastExit().Verdict)
			if tt.want == service.Crashed {
				require.Equal(t, service.GaveUpExit, s.status().Machine.GaveUp)
				require.Contains(t, s.status().Error, "restart.exit_codes.never")
			}
			require.Equal(t, tt.verdict == service.VerdictCrash, s.status().Machine.Failures == 1)
		})
	}
	play(t, func(t *testing.T, s *stage) { // memory that ran out is no clean end, whatever the signal
		s.running(rules)
		s.host.OOMKill(web, service.OOMOwn, "")
		synctest.Wait()
		s.is(service.Backoff)
		require.Equal(t, service.VerdictOwnOOM, s.lastExit().Verdict)
	})
	play(t, func(t *testing.T, s *stage) { // nor is what we made it do its own end
		s.script(fake.Script{Term: &fake.End{Exit: service.Exit{Code: 78}}}, fake.Script{})
		s.running(rules)
		s.prober.sicken()
		s.is(service.Backoff)
	})
}

// One that fails in the same way again and again is given up before its attempts are used
// up, and whoever looks is told so.
func TestDeterministic(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.running(policy(func(p *service.RestartPolicy) { p.MaxAttempts, p.Deterministic = 100, 3 }))
		for _, code := range []int{1, 1, 2, 1, 1} {
			s.crash(service.Exit{Code: code})
			s.is(service.Backoff)
			pass(time.Until(s.status().NextAttempt))
		}
		s.crash(service.Exit{Code: 1})
		s.is(service.Crashed)
		require.Equal(t, service.GaveUpDeterministic, s.status().Machine.GaveUp)
		require.Contains(t, s.status().Error, "deterministic: it failed 3 times in a row in the same way")
		require.Contains(t, s.status().Error, s.lastExit().Fingerprint)
		require.Contains(t, s.disk.details[service.NoticeState][len(s.disk.details[service.NoticeState])-1], "deterministic")
		require.Equal(t, 1, s.alerts())
		pass(time.Hour)
		require.Equal(t, 6, s.host.Launches(web))
	})
	play(t, func(t *testing.T, s *stage) { // somebody else's doing says nothing about the next time
		s.running(policy(func(p *service.RestartPolicy) { p.MaxAttempts, p.Deterministic = 100, 3 }))
		for range 10 {
			s.crash(service.Exit{Signal: syscall.SIGKILL})
			s.is(service.Backoff)
			pass(time.Until(s.status().NextAttempt))
		}
	})
	play(t, func(t *testing.T, s *stage) { // nor does one that ran well in between
		s.running(policy(func(p *service.RestartPolicy) { p.MaxAttempts, p.Deterministic = 100, 3 }))
		for range 10 {
			pass(time.Minute)
			s.crash(service.Exit{Code: 1})
			s.is(service.Backoff)
			pass(time.Until(s.status().NextAttempt))
		}
	})
	play(t, func(t *testing.T, s *stage) { // not ready in time, again and again, is the same as well
		s.start(readyByTCP, policy(func(p *service.RestartPolicy) { p.MaxAttempts, p.Deterministic = 100, 3 }))
		pass(time.Hour)
		s.is(service.Crashed)
		require.Equal(t, service.GaveUpDeterministic, s.status().Machine.GaveUp)
		require.Equal(t, 3, s.host.Launches(web))
	})
}

// Whoever has to wait for its turn says so.
func TestTurns(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.running()
		s.turnIn.Store(int64(5 * time.Second))
		s.crash(service.Exit{Code: 1})
		require.Equal(t, time.Second, time.Until(s.status().NextAttempt))
		pass(time.Second)
		s.is(service.Backoff)
		require.Equal(t, 5*time.Second, time.Until(s.status().NextAttempt))
		require.Contains(t, s.status().Error, "it waits for its turn")
		require.Contains(t, s.status().Error, "exit code 1")
		pass(5*time.Second - 1)
		s.is(service.Backoff)
		pass(1)
		s.is(service.Running)
		require.Empty(t, s.status().Error)
		require.Equal(t, 1, strings.Count(fmt.Sprint(s.disk.told()), "turn"))

		s.turnIn.Store(int64(time.Hour))
		s.crash(service.Exit{Code: 1})
		pass(2 * time.Second)
		s.is(service.Backoff)
		s.running() // who asks for it does not wait
	})
}

// The counters outlive the agent, and so does the wait.
func TestCountersOutliveTheAgent(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.running(policy(func(p *service.RestartPolicy) { p.MaxAttempts = 3 }))
		for i := range 3 {
			s.crash(service.Exit{Code: 1})
			wait := time.Until(s.status().NextAttempt)
			require.Equal(t, time.Second<<i, wait)
			pass(wait / 2)
			s.succeed(forEver)
			s.is(service.Backoff)
			require.Equal(t, i+1, s.status().Machine.Recent)
			require.Equal(t, i+1, s.status().Machine.Alike)
			pass(wait - wait/2)
			s.is(service.Running)
		}
		s.crash(service.Exit{Code: 1})
		s.is(service.Crashed)
		s.succeed(forEver)
		s.is(service.Crashed)
		require.Equal(t, service.GaveUpAttempts, s.status().Machine.GaveUp)
		require.Contains(t, s.status().Error, "given up, since it failed 4 times within 10m0s")
		require.Zero(t, s.alerts(), "the next agent does not say it again")
	})
}

// However often a clock is set, or an agent is not there, the window is that of the host's
// time since boot.
func TestTheWindowIsNotOfTheWall(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		one := policy(func(p *service.RestartPolicy) { p.MaxAttempts, p.Window = 1, time.Minute })
		s.running(one)
		s.crash(service.Exit{Code: 1})
		pass(time.Second)
		s.setClock(24 * time.Hour)
		synctest.Wait()
		s.succeed(forEver)
		s.crash(service.Exit{Code: 1})
		s.is(service.Crashed)
	})
}

// An end that comes while the agent is held up is one failure, and the time that it was
// held up for makes nobody stable (I11).
func TestAStallIsNoFailure(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.running(often)
		s.crash(service.Exit{Code: 1})
		pass(time.Second)
		s.is(service.Running)
		held := make(chan struct{})
		s.disk.failWith(func(Record) error { <-held; return nil })
		s.crash(service.Exit{Code: 1}) // its record waits, and all that follows
		pass(time.Hour)
		require.Equal(t, 2, s.host.Launches(web))
		s.disk.failWith(nil)
		close(held)
		synctest.Wait()
		pass(2 * time.Second)
		s.is(service.Running)
		require.Equal(t, 2, s.status().Machine.Failures)
		require.Len(t, s.disk.exitsOf(web), 2)
	})
}
