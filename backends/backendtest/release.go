package backendtest

import (
	"errors"
	"sync"
	"syscall"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
)

func releaseLaws() []law {
	return []law{
		{says: "Release counts no leftovers where there are none", check: lawReleaseClean},
		{says: "Release kills and counts what outlived the main process", check: lawReleaseLeftovers},
		{says: "Release kills a main process that is alive", check: lawReleaseAlive},
		{says: "Release ends a tree of orphaned sessions that ignore SIGTERM", check: lawReleaseTree},
		{says: "Release returns the same remains again", check: lawReleaseTwice},
		{says: "Finish ends all and tells what remains, and Release tells the same", check: lawFinish},
		{says: "what was finished and not released can be told by another agent", only: real, check: lawFinishKeeps},
		{says: "after Release nothing of the incarnation exists", check: lawReleaseNothing},
		{says: "what Release tells covers all that was used", check: lawReleaseUsage},
		{says: "a released handle still tells its Ref, and refuses the rest", check: lawReleasedHandle},
		{says: "after Release the same name runs again, as the next incarnation", check: lawReleaseNext},
		{says: "Release does not hang when its context has ended, and may be called again", check: lawReleaseEnded},
		{says: "an end by SIGKILL from outside is not told as want of memory", check: lawKilledIsNoOOM},
	}
}

func (i *incarnation) release() service.Remains {
	i.bench.Helper()
	remains, err := i.Release(i.bench.within())
	require.NoError(i.bench, err)
	return remains
}

func lawReleaseClean(b *bench) {
	i := b.launch(b.plan("exit", "0"))
	i.exit()
	remains := i.release()
	require.Zero(b, remains.Leftovers)
	require.Equal(b, service.OOMNone, remains.OOM)
	b.nothingOf(i.plan)
}

func lawReleaseLeftovers(b *bench) {
	i := b.start("fork", "3")
	require.NoError(b, i.Signal(b.within(), syscall.SIGTERM))
	i.exit()
	require.Equal(b, 3, b.alive(i.plan))
	require.Equal(b, 3, i.release().Leftovers)
	b.nothingOf(i.plan)
}

func lawReleaseAlive(b *bench) {
	i := b.start("fork", "3")
	require.Zero(b, i.release().Leftovers, "what is killed together with the main process is not left over")
	require.Equal(b, service.Exit{Signal: syscall.SIGKILL}, i.exit())
	b.nothingOf(i.plan)
}

func lawReleaseTree(b *bench) {
	i := b.start("tree", "4")
	require.NoError(b, i.Signal(b.within(), syscall.SIGKILL))
	i.exit()
	require.Equal(b, 30, b.alive(i.plan))
	require.Equal(b, 30, i.release().Leftovers)
	b.nothingOf(i.plan)
}

func lawReleaseTwice(b *bench) {
	i := b.start("fork", "2")
	require.NoError(b, i.Signal(b.within(), syscall.SIGTERM))
	i.exit()
	var wait sync.WaitGroup
	remains := make([]service.Remains, 4)
	for n := range remains {
		wait.Go(func() {
			var err error
			if remains[n], err = i.Release(b.within()); err != nil {
				b.Error(err)
			}
		})
	}
	wait.Wait()
	again := i.release()
	require.Equal(b, 2, again.Leftovers)
	for _, r := range remains {
		require.Equal(b, again, r)
	}
}

func lawFinish(b *bench) {
	i := b.start("fork", "3")
	require.NoError(b, i.Signal(b.within(), syscall.SIGTERM))
	i.exit()
	remains, err := i.Finish(b.within())
	require.NoError(b, err)
	require.Equal(b, 3, remains.Leftovers)
	require.NotEmpty(b, remains.Usage.Source)
	require.Zero(b, b.alive(i.plan))
	again, err := i.Finish(b.within())
	require.NoError(b, err)
	require.Equal(b, 3, again.Leftovers)
	require.Equal(b, 3, i.release().Leftovers)
	after, err := i.Finish(b.within())
	require.NoError(b, err)
	require.Equal(b, 3, after.Leftovers, "after Release")
	b.nothingOf(i.plan)
}

func lawFinishKeeps(b *bench) {
	i := b.start("fork", "3")
	require.NoError(b, i.Signal(b.within(), syscall.SIGTERM))
	i.exit()
	_, err := i.Finish(b.within())
	require.NoError(b, err)
	h, err := b.newAgent().Adopt(b.within(), i.Ref(), service.Launch{})
	if errors.Is(err, backends.ErrGone) && !b.KeepsExits { // nothing of it is left, and nobody keeps how it ended
		return
	}
	require.NoError(b, err)
	defer h.Close()
	b.missed(service.Exit{Signal: syscall.SIGTERM}, b.exitOf(h))
	i.release()
	b.nothingOf(i.plan)
}

func lawReleaseNothing(b *bench) {
	i := b.start("tree", "2")
	ref := i.Ref()
	i.release()
	b.nothingOf(i.plan)
	leftovers, err := b.agent.Leftovers(b.within(), []service.Name{i.plan.Name})
	require.NoError(b, err)
	for _, l := range leftovers {
		require.NotEqual(b, ref.Name, l.Name)
	}
}

func lawReleaseUsage(b *bench) {
	i := b.start("hog-cpu", "1")
	var last service.Usage
	b.eventually(func() bool {
		u, err := i.Usage(b.within())
		require.NoError(b, err)
		last = u
		return u.CPUTime > 0
	}, "the hog never used the CPU")
	require.NoError(b, i.Signal(b.within(), syscall.SIGKILL))
	i.exit()
	remains := i.release()
	require.GreaterOrEqual(b, remains.Usage.CPUTime, last.CPUTime)
	require.NotEmpty(b, remains.Usage.Source)
}

func lawReleasedHandle(b *bench) {
	i := b.start("sleep")
	ref := i.Ref()
	i.release()
	require.Equal(b, ref, i.Ref())
	_, err := i.Limit(b.within(), service.Limits{})
	b.wantError(err, service.NotRunning)
	if processes, err := i.Processes(b.within()); err == nil {
		require.Empty(b, processes)
	}
}

func lawReleaseNext(b *bench) {
	i := b.start("sleep")
	i.release()
	l := b.plan("sleep")
	l.Name, l.Spec.Name, l.LogFile = i.plan.Name, i.plan.Name, i.plan.LogFile
	l.Incarnation = i.plan.Incarnation + 1
	next := b.launch(l)
	require.Equal(b, 1, b.alive(l))
	require.NotEqual(b, i.Ref().PID, next.Ref().PID)
	require.NoError(b, i.Kill(b.within()), "the old handle has no power over the next incarnation")
	i.release()
	next.lives()
	require.Equal(b, 1, b.alive(l))
}

func lawReleaseEnded(b *bench) {
	i := b.start("fork", "3")
	if _, err := i.Release(b.ended()); err != nil {
		e, ok := err.(*service.Error)
		require.True(b, ok, "%T", err)
		require.Contains(b, []service.Kind{service.Timeout, service.Cancelled}, e.Kind)
	}
	i.release()
	b.nothingOf(i.plan)
}

func lawKilledIsNoOOM(b *bench) {
	i := b.start("sleep")
	require.NoError(b, i.Signal(b.within(), syscall.SIGKILL))
	require.Equal(b, service.Exit{Signal: syscall.SIGKILL}, i.exit())
	remains := i.release()
	require.Equal(b, service.OOMNone, remains.OOM)
	require.Empty(b, remains.OOMLevel)
}
