package process

import (
	"context"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
)

// Who succeeded is who is asked and signalled, and whose end is the end.
func TestSuccession(t *testing.T) {
	w := newWatcher(t)
	heir := func() *Process {
		pid, pidfd := fork(t, "exec sleep 1000")
		p, err := Child(w, pid, pidfd)
		require.NoError(t, err)
		t.Cleanup(func() { // it may have been let go of, and then nobody reaps it
			_ = p.Signal(syscall.SIGKILL)
			_ = p.Close()
			_ = syscall.Kill(pid, syscall.SIGKILL)
			wait4(pid)
		})
		return p
	}
	first, second, third := heir(), heir(), heir()
	m := Lead(first)
	over := make(chan bool, 1)
	go func() { over <- m.Await(t.Context()) }()
	require.NoError(t, m.Succeed(second))
	require.False(t, first.Lives(), "it was let go")
	pid, ticks := m.Identity()
	require.Equal(t, second.PID(), pid)
	require.Equal(t, second.StartTicks(), ticks)
	require.True(t, m.Lives())
	require.Zero(t, m.Exit())
	select {
	case <-over:
		t.Fatal("nobody has ended")
	default:
	}
	require.NoError(t, m.Signal(syscall.SIGTERM))
	require.True(t, <-over)
	require.Equal(t, service.Exit{Signal: syscall.SIGTERM}, m.Exit())
	require.True(t, m.Ended())

	require.NoError(t, m.Succeed(third)) // also one that has ended
	require.False(t, m.Ended())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.False(t, m.Await(ctx))

	require.NoError(t, m.Close())
	late := heir()
	require.ErrorContains(t, m.Succeed(late), "was let go")
	require.False(t, late.Lives(), "nobody else has it")
}

func TestNobodyLeads(t *testing.T) {
	require.Nil(t, Lead(nil))
	require.True(t, Lead(nil).Ended())
	<-Lead(nil).Exited()
	require.Equal(t, service.Exit{Unknown: UnknownExit}, Lead(nil).Exit())
	require.Zero(t, Lead(nil).ExitedAt())
	require.Equal(t, service.Ref{PID: 7, StartTicks: 8}, Lead(nil).Named(service.Ref{PID: 7, StartTicks: 8}))
	_, told := Lead(nil).AwaitStop(func() {})
	require.False(t, told)
	_, err := Lead(nil).Threads(proc(t))
	require.Equal(t, service.NotRunning, service.KindOf(err))
}
