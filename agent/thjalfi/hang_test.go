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
