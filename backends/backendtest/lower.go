package backendtest

import (
	"context"
	"fmt"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
)

func lowerLaws() []law {
	return []law{
		{says: "memory_max goes below what is in use, by reclaiming, and nobody is killed", only: caged, alone: true, check: lawLower},
		{says: "a memory_max that can not be reached is refused, and all is as before", only: caged, alone: true, check: lawLowerRefused},
		{says: "who gives up lowering memory_max finds all as before", only: caged, check: lawLowerGivenUp},
		{says: "a memory_max that is forced has the kernel kill, at the service's own limit", only: caged, alone: true, check: lawLowerForced},
	}
}

// filled runs one that uses as much of both kinds of memory, below 512 MiB; the files are
// those below from, or from is a disk.
func (b *bench) filled(from string, cache, anonymous uint64) *incarnation {
	b.Helper()
	l := b.memoryLimited(512*mebi, "cache", from, "0", fmt.Sprint(cache), fmt.Sprint(anonymous))
	if !b.enforces(l) {
		return nil
	}
	i := b.launch(l)
	i.ready()
	return i
}

func to(limit uint64) service.Limits { return service.Limits{service.MemoryMax: service.Of(limit)} }

func lawLower(b *bench) {
	from, cache := ScratchDisk(), uint64(300*mebi)
	if from == "" {
		from, cache = usr, 240*mebi // of files most hosts have no more
	}
	i := b.filled(from, cache, 90*mebi)
	if i == nil {
		return
	}
	require.Greater(b, i.usage().Memory, cache+80*mebi)
	high := b.cgroupFile(i.Ref(), "memory.high")
	applied, err := i.Limit(b.within(), to(128*mebi))
	require.NoError(b, err)
	require.Equal(b, service.Of(128*mebi), applied[service.MemoryMax].Applied)
	require.Equal(b, high, b.cgroupFile(i.Ref(), "memory.high"))
	// Some charges may go beyond it for a moment (cgroup-v2.rst, memory.max).
	require.Less(b, i.usage().Memory, uint64(129*mebi))
	require.Zero(b, i.counter("memory.events", "oom_kill"))
	i.lives()
}

func lawLowerRefused(b *bench) {
	i := b.filled(usr, 100*mebi, 200*mebi)
	if i == nil {
		return
	}
	before := i.limits()
	high, used := b.cgroupFile(i.Ref(), "memory.high"), i.usage().Memory
	_, err := i.Limit(b.within(), to(128*mebi).Over(service.Limits{service.PidsMax: service.Of(77)}))
	e := b.wantError(err, service.Conflict)
	require.Equal(b, service.ReasonLimitInUse, service.ReasonOf(e))
	require.ErrorContains(b, err, "memory_max of 128MiB is too low")
	require.Equal(b, before, i.limits())
	require.Equal(b, high, b.cgroupFile(i.Ref(), "memory.high"))
	require.Greater(b, i.usage().Memory, used/10*9, "nothing was reclaimed in vain")
	require.Zero(b, i.counter("memory.events", "oom_kill"))
	i.lives()
}

func lawLowerGivenUp(b *bench) {
	l := b.memoryLimited(512*mebi, "cache", usr, "0", fmt.Sprint(64*mebi))
	if !b.enforces(l) {
		return
	}
	// On a busy host who wants to give up may come too late: another try then.
	var i *incarnation
	var before service.Applied
	var high string
	err := error(nil)
	for try := 0; try < 5 && err == nil; try++ {
		i = b.launch(l)
		i.ready()
		before, high = i.limits(), b.cgroupFile(i.Ref(), "memory.high")
		ctx, giveUp := context.WithCancel(b.within())
		heard := i.hears()
		done := make(chan error, 1)
		go func() {
			_, err := i.Limit(ctx, to(32*mebi))
			done <- err
		}()
		b.eventually(func() bool { return heard("memory.high") }, "memory.high did not keep off growth")
		giveUp()
		err = <-done
	}
	b.wantError(err, service.Cancelled)
	for r, now := range i.limits() { // what is set by whom above may change with others
		require.Equal(b, before[r].Applied, now.Applied, service.Resource(r))
		require.Equal(b, before[r].Requested, now.Requested, service.Resource(r))
	}
	require.Equal(b, high, b.cgroupFile(i.Ref(), "memory.high"))
	i.lives()
}

func lawLowerForced(b *bench) {
	i := b.filled(usr, 20*mebi, 200*mebi)
	if i == nil {
		return
	}
	_, _ = i.Force(b.within(), to(128*mebi)) // it may be gone before it can be read back
	require.Equal(b, service.Exit{Signal: 9}, i.exit())
	require.Equal(b, service.OOMOwn, i.release().OOM)
}
