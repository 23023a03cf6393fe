package backendtest

import (
	"fmt"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
)

func usageLaws() []law {
	return []law{
		{says: "what is used is above nothing, and its source is told", check: lawUsage},
		{says: "the CPU time of a hog grows", check: lawUsageGrows},
		{says: "memory that was touched is counted", only: real, check: lawUsageMemory},
		{says: "children are counted", check: lawUsageChildren},
		{says: "the processes are listed as they are, the main one first", check: lawProcesses},
		{says: "one service's use is not another's", check: lawUsageApart},
		{says: "all services together have used what each has, those included that have ended", only: caged, alone: true, check: lawTotal},
	}
}

func (i *incarnation) usage() service.Usage {
	i.bench.Helper()
	u, err := i.Usage(i.bench.within())
	require.NoError(i.bench, err)
	return u
}

func lawUsage(b *bench) {
	u := b.start("sleep").usage()
	require.Contains(b, []string{"cgroup", "procfs"}, u.Source)
	require.NotZero(b, u.Memory)
	require.Zero(b, u.CPUPercent, "byggvir's to fill")
	if u.MemoryPeak.Set {
		require.NotZero(b, u.MemoryPeak.Value)
	}
	if u.Pids.Set {
		require.NotZero(b, u.Pids.Value)
	}
	if u.OOMKills.Set {
		require.Zero(b, u.OOMKills.Value)
	}
}

func lawUsageGrows(b *bench) {
	i := b.start("hog-cpu", "1")
	last := i.usage().CPUTime
	for range 3 {
		b.eventually(func() bool { return i.usage().CPUTime > last }, "its CPU time stays at %v", last)
		last = i.usage().CPUTime
	}
}

func lawUsageMemory(b *bench) {
	const touched = 40 * mebi
	i := b.start("hog-memory", fmt.Sprint(touched))
	u := i.usage()
	require.GreaterOrEqual(b, u.Memory, uint64(touched))
	require.Less(b, u.Memory, uint64(3*touched))
	if u.MemoryPeak.Set {
		require.GreaterOrEqual(b, u.MemoryPeak.Value, uint64(touched))
	}
	if u.Anon.Set { // the kernel adds up by kind every two seconds, or after so many changes
		b.eventually(func() bool { return i.usage().Anon.Value >= touched }, "anonymous memory stays below %d", touched)
	}
}

func lawUsageChildren(b *bench) {
	u := b.start("fork", "5").usage()
	if u.Pids.Set {
		require.GreaterOrEqual(b, u.Pids.Value, uint64(6))
	}
}

func lawProcesses(b *bench) {
	i := b.start("tree", "2")
	processes, err := i.Processes(b.within())
	require.NoError(b, err)
	require.Len(b, processes, 7)
	require.Equal(b, i.Ref().PID, processes[0].PID)
	seen := map[int]backends.Process{}
	for _, p := range processes {
		seen[p.PID] = p
		require.NotEmpty(b, p.Command)
		require.NotZero(b, p.Parent)
	}
	require.Len(b, seen, 7, "one is listed twice")
	if b.Workload == "" {
		return
	}
	for _, pid := range processesWith(token(i.plan)) {
		s, _ := statOf(pid)
		require.Contains(b, seen, pid)
		require.Equal(b, s.parent, seen[pid].Parent)
	}
}

func lawUsageApart(b *bench) {
	hog, other := b.start("hog-cpu", "1"), b.start("sleep")
	b.eventually(func() bool { return hog.usage().CPUTime > 5*other.usage().CPUTime+50*time.Millisecond }, "one that sleeps used as much as a hog")
}

func lawTotal(b *bench) {
	counter, ok := b.agent.(backends.Totaller)
	require.True(b, ok, "it has cgroups")
	total := func() service.Usage {
		b.Helper()
		u, err := counter.Total()
		require.NoError(b, err)
		return u
	}
	const touched = 20 * mebi
	hog, other := b.start("hog-cpu", "1"), b.start("hog-memory", fmt.Sprint(touched))
	b.eventually(func() bool { return hog.usage().CPUTime > 200*time.Millisecond }, "it uses no CPU time")
	hogged, held := hog.usage(), other.usage()
	all := total()
	require.Equal(b, "cgroup", all.Source)
	require.GreaterOrEqual(b, all.CPUTime, hogged.CPUTime+held.CPUTime)
	require.GreaterOrEqual(b, all.Memory, uint64(touched))
	require.GreaterOrEqual(b, all.Pids.Value, uint64(2))
	require.Zero(b, all.CPUPercent, "byggvir's to fill")
	require.Equal(b, held.CPUPressure.Some.Set, all.CPUPressure.Some.Set)

	_, err := hog.Release(b.within())
	require.NoError(b, err)
	after := total()
	require.GreaterOrEqual(b, after.CPUTime, hogged.CPUTime+held.CPUTime, "what it used was used")
	require.Less(b, after.Pids.Value, all.Pids.Value)
}
