package backendtest

import (
	"fmt"
	"syscall"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
)

func signalLaws() []law {
	return []law{
		{says: "a signal arrives as what it is", only: real, check: lawSignalArrives},
		{says: "a signal ends a program that does nothing about it", check: lawSignalEnds},
		{says: "a signal reaches the main process only", check: lawSignalMain},
		{says: "a stopped process goes on when it is told to", only: real, check: lawSignalContinue},
		{says: "that the main process is stopped or goes on is told, and seen in its threads", check: lawStopTold},
		{says: "who has ended can not be signalled", check: lawSignalEnded},
	}
}

func lawSignalArrives(b *bench) {
	i := b.start("ignore-term")
	for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGWINCH} {
		require.NoError(b, i.Signal(b.within(), sig))
		i.says(fmt.Sprintf("signal %d\n", sig))
	}
	i.lives()
}

func lawSignalEnds(b *bench) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		i := b.start("fork", "0")
		require.NoError(b, i.Signal(b.within(), sig))
		require.Equal(b, sig, i.exit().Signal)
	}
}

func lawSignalMain(b *bench) {
	i := b.start("fork", "3")
	require.Equal(b, 4, b.alive(i.plan))
	require.NoError(b, i.Signal(b.within(), syscall.SIGTERM))
	require.Equal(b, syscall.SIGTERM, i.exit().Signal)
	require.Equal(b, 3, b.alive(i.plan), "its children got nothing")
}

func lawSignalContinue(b *bench) {
	i := b.start("sleep")
	in := func(state byte) func() bool {
		return func() bool { s, ok := statOf(i.Ref().PID); return ok && s.state == state }
	}
	require.NoError(b, i.Signal(b.within(), syscall.SIGSTOP))
	b.eventually(in('T'), "it never stopped")
	require.NoError(b, i.Signal(b.within(), syscall.SIGCONT))
	b.eventually(in('S'), "it never went on")
	i.lives()
}

func lawStopTold(b *bench) {
	i := b.start("sleep")
	for _, step := range []struct {
		sig     syscall.Signal
		stopped bool
	}{{syscall.SIGSTOP, true}, {syscall.SIGCONT, false}, {syscall.SIGSTOP, true}} {
		told := make(chan struct{}, 1)
		_, err := i.AwaitStop(func() { told <- struct{}{} })
		require.NoError(b, err)
		require.NoError(b, i.Signal(b.within(), step.sig))
		select {
		case <-told:
		case <-b.within().Done():
			b.Fatalf("%v is not told", step.sig)
		}
		threads, err := i.Threads()
		require.NoError(b, err)
		require.Equal(b, step.stopped, threads.Stopped)
		require.Equal(b, step.stopped, threads.Held)
	}
	require.NoError(b, i.Signal(b.within(), syscall.SIGKILL))
	require.Equal(b, syscall.SIGKILL, i.exit().Signal)
	_, err := i.Threads()
	b.wantError(err, service.NotRunning)
}

func lawSignalEnded(b *bench) {
	i := b.launch(b.plan("exit", "0"))
	i.exit()
	b.wantError(i.Signal(b.within(), syscall.SIGTERM), service.NotRunning)
	_, err := i.Release(b.within())
	require.NoError(b, err)
	b.wantError(i.Signal(b.within(), syscall.SIGTERM), service.NotRunning)
}
