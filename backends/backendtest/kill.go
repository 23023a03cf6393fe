package backendtest

import (
	"math"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
)

func killLaws() []law {
	all := []law{
		{says: "Kill returns when nothing is left, and the exit is SIGKILL", check: lawKill},
		{says: "Kill ends who ignores SIGTERM", check: lawKillStubborn},
		{says: "Kill ends children too", check: lawKillChildren},
		{says: "Kill ends a daemon in a session of its own with no descriptor open", check: lawKillDaemon},
		{says: "Kill ends a tree of orphaned sessions that ignore SIGTERM", check: lawKillTree},
		{says: "Kill ends a parent of zombies", only: real, check: lawKillZombies},
		{says: "Kill ends who executes itself again and again", only: real, check: lawKillExecSelf},
		{says: "Kill ends what outlived the main process", check: lawKillLeftovers},
		{says: "Kill is idempotent, before and after Release", check: lawKillTwice},
		{says: "Kill touches nobody else", check: lawKillApart},
		{says: "Kill, Signal, Usage, Processes, Limits and Release may come all at once", check: lawAllAtOnce},
		{says: "Kill does not hang when its context has ended", check: lawKillEnded},
	}
	all = append(all, law{says: "Kill ends at once who may use one percent of a core", only: real, alone: true, check: lawKillThrottled})
	for _, kind := range []string{"plain", "setsid", "vfork", "churn", "exec"} {
		all = append(all, law{
			says: "Kill ends a fork bomb, kind " + kind + ", within a second", only: real, alone: true,
			check: func(b *bench) { lawKillBomb(b, kind) },
		})
	}
	return all
}

func lawKill(b *bench) {
	i := b.start("sleep")
	require.NoError(b, i.Kill(b.within()))
	require.Zero(b, b.alive(i.plan))
	require.Equal(b, service.Exit{Signal: syscall.SIGKILL}, i.exit())
}

func lawKillStubborn(b *bench) {
	i := b.start("ignore-term")
	require.NoError(b, i.Signal(b.within(), syscall.SIGTERM))
	require.NoError(b, i.Kill(b.within()))
	require.Zero(b, b.alive(i.plan))
	require.Equal(b, service.Exit{Signal: syscall.SIGKILL}, i.exit())
}

func lawKillChildren(b *bench) {
	i := b.start("fork", "20")
	require.Equal(b, 21, b.alive(i.plan))
	require.NoError(b, i.Kill(b.within()))
	require.Zero(b, b.alive(i.plan))
}

func lawKillDaemon(b *bench) {
	i := b.start("double-fork", "stay")
	require.Equal(b, 2, b.alive(i.plan))
	require.NoError(b, i.Kill(b.within()))
	require.Zero(b, b.alive(i.plan))
}

func lawKillTree(b *bench) {
	i := b.start("tree", "4")
	require.Equal(b, 31, b.alive(i.plan))
	require.NoError(b, i.Kill(b.within()))
	require.Zero(b, b.alive(i.plan))
	require.Equal(b, service.Exit{Signal: syscall.SIGKILL}, i.exit())
}

func lawKillZombies(b *bench) {
	i := b.start("zombies", "50")
	require.NoError(b, i.Kill(b.within()))
	require.Zero(b, b.alive(i.plan))
	require.Equal(b, service.Exit{Signal: syscall.SIGKILL}, i.exit())
}

// lawKillExecSelf looks at the number: in the midst of an exec a process has no
// command line, and its first thread may be a zombie while another takes over.
func lawKillExecSelf(b *bench) {
	for range few(make([]int, 5), 2) {
		i := b.start("exec-self", "1000")
		ref := i.Ref()
		require.NoError(b, i.Kill(b.within()))
		s, ok := statOf(ref.PID)
		require.False(b, ok && s.start == ref.StartTicks && s.state != 'Z' && s.state != 'X', "it lives: %c", s.state)
		require.Equal(b, service.Exit{Signal: syscall.SIGKILL}, i.exit())
		require.Zero(b, b.alive(i.plan))
	}
}

func lawKillLeftovers(b *bench) {
	i := b.start("double-fork")
	require.Equal(b, service.Exit{}, i.exit())
	require.Equal(b, 1, b.alive(i.plan))
	require.NoError(b, i.Kill(b.within()))
	require.Zero(b, b.alive(i.plan))
	require.Equal(b, service.Exit{}, i.Exit(), "killing the rest changes nothing about the main one's end")
}

func lawKillTwice(b *bench) {
	i := b.start("fork", "2")
	require.NoError(b, i.Kill(b.within()))
	require.NoError(b, i.Kill(b.within()))
	_, err := i.Release(b.within())
	require.NoError(b, err)
	require.NoError(b, i.Kill(b.within()))
}

func lawKillApart(b *bench) {
	one, other := b.start("fork", "3"), b.start("fork", "3")
	require.NoError(b, one.Kill(b.within()))
	require.Zero(b, b.alive(one.plan))
	require.Equal(b, 4, b.alive(other.plan))
	other.lives()
	_, err := one.Release(b.within())
	require.NoError(b, err)
	require.Equal(b, 4, b.alive(other.plan))
	other.lives()
}

func lawAllAtOnce(b *bench) {
	i := b.start("fork", "3")
	ctx := b.within()
	var wait sync.WaitGroup
	for range 4 {
		wait.Go(func() { _ = i.Signal(ctx, syscall.SIGTERM) })
		wait.Go(func() { _, _ = i.Usage(ctx) })
		wait.Go(func() { _, _ = i.Processes(ctx) })
		wait.Go(func() { _, _ = i.Limits(ctx) })
		wait.Go(func() {
			if err := i.Kill(ctx); err != nil {
				b.Errorf("one Kill of many: %v", err)
			}
		})
		wait.Go(func() {
			if _, err := i.Release(ctx); err != nil {
				b.Errorf("one Release of many: %v", err)
			}
		})
	}
	wait.Wait()
	b.nothingOf(i.plan)
	require.NotZero(b, i.exit().Signal)
}

func lawKillEnded(b *bench) {
	i := b.start("fork", "3")
	if err := i.Kill(b.ended()); err != nil {
		e, ok := err.(*service.Error)
		require.True(b, ok, "%T", err)
		require.Contains(b, []service.Kind{service.Timeout, service.Cancelled}, e.Kind)
	}
	require.NoError(b, i.Kill(b.within()), "it may be called again")
	require.Zero(b, b.alive(i.plan))
}

// lawKillThrottled kills many who wait for CPU time, of which dying takes some.
func lawKillThrottled(b *bench) {
	if !b.agent.Enforces().Limits[service.CPUMax] {
		return
	}
	i := b.start("fork", "40")
	_, err := i.Limit(b.within(), service.Limits{service.CPUMax: service.Of(service.UsecPerPercent)})
	require.NoError(b, err)
	began := time.Now()
	require.NoError(b, i.Kill(b.within()))
	require.Less(b, time.Since(began), 5*time.Second)
	require.Zero(b, b.alive(i.plan))
}

// lawKillBomb lets a bomb burn beside a neighbour, who must not feel it. Every
// bomb has to be gone soon, and one of the first within a second: a machine
// with other work may be slow once.
func lawKillBomb(b *bench, kind string) {
	neighbour := b.start("fork", "3")
	best := time.Duration(math.MaxInt64)
	for try := 0; try < 3 && best > time.Second; try++ {
		best = min(best, b.killBomb(kind, neighbour))
	}
	require.Less(b, best, time.Second)
}

// killBomb lets a bomb grow to the limit, where there is one, or to a number
// of births that this host can bear, and tells how long its end took. Of the
// kind churn few live at a time, and of the kind exec few fit: each is a Go
// program with several threads.
func (b *bench) killBomb(kind string, neighbour *incarnation) time.Duration {
	b.Helper()
	most, enough := uint64(100), map[string]int{"plain": 20, "setsid": 20, "vfork": 20, "churn": 5, "exec": 3}[kind]
	if emulated() {
		most = 50
	}
	l := b.plan("fork-bomb", kind, "0")
	if b.agent.Enforces().Limits[service.PidsMax] {
		l = limited(l, service.Limits{service.PidsMax: service.Of(most)})
	} else {
		l = b.plan("fork-bomb", kind, strconv.Itoa(int(2*most)))
	}
	i := b.launch(l)
	i.ready()
	b.eventually(func() bool { return b.alive(l) > enough }, "the bomb did not go off")
	asked := time.Now()
	_, err := neighbour.Usage(b.within())
	require.NoError(b, err)
	require.Less(b, time.Since(asked), soon(time.Second), "a neighbour's usage")
	off := time.Now()
	require.NoError(b, i.Kill(b.within()))
	took := time.Since(off)
	require.Zero(b, b.alive(l), "survivors")
	require.Less(b, took, soon(time.Second))
	neighbour.lives()
	require.Equal(b, 4, b.alive(neighbour.plan), "bystanders are hurt")
	i.release()
	return took
}
