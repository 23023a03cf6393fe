package backendtest

import (
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
)

func succeedLaws() []law {
	return []law{
		{says: "a child succeeds the main process, and from then on is what ends and is signalled", only: real, check: lawSucceed},
		{says: "who was left behind succeeds a main process that has ended", only: real, check: lawSucceedEnded},
		{says: "who succeeded is taken up by a fresh agent", only: real, check: lawSucceedAdopted},
		{says: "strangers, the dead and who runs beside do not succeed", only: real, check: lawSucceedRefused},
	}
}

// heir is a process of the incarnation that is not the main one.
func (i *incarnation) heir() int {
	i.bench.Helper()
	var pid int
	i.bench.eventually(func() bool {
		all, err := i.Processes(i.bench.within())
		require.NoError(i.bench, err)
		at := slices.IndexFunc(all, func(p backends.Process) bool { return p.PID != i.Ref().PID })
		if at >= 0 {
			pid = all[at].PID
		}
		return at >= 0
	}, "it has only a main process")
	return pid
}

// succeeded has the heir succeed, and wants that to be told.
func (i *incarnation) succeeded(heir int) {
	b := i.bench
	b.Helper()
	want := i.Ref()
	require.NoError(b, i.Succeed(b.within(), heir))
	s, ok := statOf(heir)
	require.True(b, ok)
	want.PID, want.StartTicks = heir, s.start
	require.Equal(b, want, i.Ref())
	i.lives()
}

func lawSucceed(b *bench) {
	i := b.start("fork", "1")
	was, exited := i.Ref().PID, i.Exited()
	stirred := make(chan struct{}, 1)
	forget, err := i.AwaitStop(func() { stirred <- struct{}{} })
	require.NoError(b, err)
	defer forget()
	heir := i.heir()
	i.succeeded(heir)
	select {
	case <-stirred:
	case <-time.After(patience):
		b.Fatal("who waits for a stop of the former was not told")
	}
	list, err := i.Processes(b.within())
	require.NoError(b, err)
	require.Len(b, list, 2)
	require.Equal(b, heir, list[0].PID, "the main one comes first")

	require.NoError(b, syscall.Kill(was, syscall.SIGKILL))
	b.eventually(func() bool { return b.alive(i.plan) == 1 }, "the former lives")
	select {
	case <-exited:
		b.Fatal("the end of who was succeeded is nobody's")
	default:
	}
	i.lives()
	require.NoError(b, i.Signal(b.within(), syscall.SIGKILL))
	require.Equal(b, service.Exit{Signal: syscall.SIGKILL}, i.exit())
	require.Zero(b, i.release().Leftovers)
	b.nothingOf(i.plan)
}

func lawSucceedEnded(b *bench) {
	i := b.launch(b.plan("double-fork"))
	require.Equal(b, service.Exit{}, i.exit())
	i.succeeded(i.heir())
	require.Zero(b, i.Exit())
	require.NoError(b, i.Signal(b.within(), syscall.SIGKILL))
	require.Equal(b, service.Exit{Signal: syscall.SIGKILL}, i.exit())
	require.Zero(b, i.release().Leftovers)
	b.nothingOf(i.plan)
}

func lawSucceedAdopted(b *bench) {
	i := b.abandoned("double-fork")
	i.exit()
	i.succeeded(i.heir())
	if b.CgroupRoot != "" { // else what lives is not marked anew
		refs, err := b.agent.Leftovers(b.within(), []service.Name{i.plan.Name})
		require.NoError(b, err)
		require.Contains(b, refs, i.Ref())
	}
	again := i.adoptAnew()
	require.Equal(b, i.Ref(), again.Ref())
	again.lives()
	require.NoError(b, again.Signal(b.within(), syscall.SIGKILL))
	require.Equal(b, service.Exit{Signal: syscall.SIGKILL}, again.exit())
	require.Zero(b, again.release().Leftovers)
	b.nothingOf(i.plan)
}

func lawSucceedRefused(b *bench) {
	i, other := b.start("sleep"), b.start("sleep")
	was := i.Ref()
	refused := func(pid int, kind service.Kind) {
		b.Helper()
		b.wantError(i.Succeed(b.within(), pid), kind)
		require.Equal(b, was, i.Ref())
		i.lives()
	}
	refused(os.Getpid(), service.Conflict)
	refused(other.Ref().PID, service.Conflict)
	dead, err := os.StartProcess("/bin/true", []string{"true"}, &os.ProcAttr{})
	require.NoError(b, err)
	_, err = dead.Wait()
	require.NoError(b, err)
	refused(dead.Pid, service.NotRunning)

	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = i.Run(b.Context(), backends.Program{Argv: i.beside("sleep")})
	}()
	refused(i.heir(), service.Conflict)
	require.NoError(b, i.Kill(b.within()))
	<-done
	i.release()
	b.nothingOf(i.plan)
}
