package thjalfi

import (
	"context"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends/fake"
)

func TestAHangEndsTheIncarnationThatHung(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.lax = true // signals are sent to what runs
		s.script(fake.Script{Stubborn: true})
		s.running()
		hang := func(incarnation uint64, stopped bool) error {
			return s.Hang(context.Background(), web, incarnation, "nobody is served", stopped)
		}
		require.Equal(t, service.NotRunning, service.KindOf(hang(7, true)), "another one")
		require.NoError(t, s.Signal(context.Background(), web, syscall.SIGSTOP, "dora"))
		require.ErrorContains(t, hang(1, true), "dora has stopped it")
		s.is(service.Running)
		require.NoError(t, hang(1, false), "that is another matter")
		synctest.Wait() // it is recorded behind the answer
		s.is(service.Stopping)
		require.Equal(t, service.NotRunning, service.KindOf(hang(1, false)), "it ends already")
		pass(time.Minute)
		x := s.lastExit()
		require.Equal(t, service.VerdictUnhealthy, x.Verdict)
		require.True(t, x.ForceKilled)
		require.Contains(t, x.Message, "ended because it hung, killed after its stop timeout: nobody is served")

		s.is(service.Running)
		require.NoError(t, s.Hang(context.Background(), web, 2, "once more", true), "this one was stopped by nobody of ours")
	})
}

func TestAHangOfTheFrozenIsRefused(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.running()
		s.host.Freeze(web, "")
		require.Equal(t, service.Conflict, service.KindOf(s.Hang(context.Background(), web, 1, "it is frozen", false)))
		pass(time.Second)
		s.is(service.Running)
	})
}

// Checks that fail since somebody has stopped it do not count, over the end of the agent
// too, and begin anew when it gets CONT.
func TestThePausedAreExcused(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.lax = true // signals are sent to what runs
		signal := func(sig syscall.Signal) {
			s.ok(begin(func() error { return s.Signal(context.Background(), web, sig, "dora") }))
		}
		s.running()
		require.NoError(t, s.prober.excuse())
		s.host.Signal(web, syscall.SIGSTOP)
		require.NoError(t, s.prober.excuse(), "this one was stopped by nobody of ours")
		signal(syscall.SIGSTOP)
		const why = "dora has stopped it with a signal, until it gets CONT"
		require.EqualError(t, s.prober.excuse(), why)
		require.Equal(t, 1, s.prober.count)

		s.succeed(forEver)
		require.EqualError(t, s.prober.excuse(), why)
		s.host.Signal(web, syscall.SIGCONT)
		require.NoError(t, s.prober.excuse(), "others have let it go on")
		s.host.Signal(web, syscall.SIGSTOP)
		require.EqualError(t, s.prober.excuse(), why)
		s.prober.mu.Lock()
		before := s.prober.attended[1]
		s.prober.mu.Unlock()
		signal(syscall.SIGCONT)
		require.NoError(t, s.prober.excuse())
		require.Equal(t, 2, s.prober.count, "checks begin anew")
		require.Equal(t, 1, s.prober.attending())
		signal(syscall.SIGCONT)
		require.Equal(t, 2, s.prober.count)
		before() // it was found ill before it went on
		synctest.Wait()
		s.is(service.Running)

		signal(syscall.SIGSTOP)
		s.ok(s.restart())
		s.host.Signal(web, syscall.SIGSTOP)
		require.NoError(t, s.prober.excuse(), "that was another one")
	})
}
