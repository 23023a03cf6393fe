package backendtest

import (
	"fmt"
	"math"
	"strings"
	"syscall"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
)

func enforcementLaws() []law {
	return []law{
		{says: "who uses more memory than memory_max is killed for that, and it is told, with the level", only: real, check: lawMemoryMax},
		{says: "want of memory ends the whole service, not one process of it", only: real, check: lawMemoryMaxAll},
		{says: "one that stays below memory_max lives", only: real, check: lawMemoryBelow},
		{says: "pids_max makes a fork fail, and nobody is killed", only: real, check: lawPidsMax},
		{says: "cpu_percent 20 gives 20 percent", only: real, alone: true, check: lawCPUMax},
		{says: "a change of cpu_percent works on a service that runs", only: real, alone: true, check: lawCPUChange},
	}
}

// enforces wants a limit to be enforced here; where it is not, the launch must
// be refused, and the law has been kept.
func (b *bench) enforces(l service.Launch) bool {
	b.Helper()
	if len(b.agent.Enforces().Missing(l.Limits)) == 0 {
		return true
	}
	_, err := b.agent.Launch(b.within(), l, nothingToIdentify)
	b.wantError(err, service.Unenforceable)
	b.nothingOf(l)
	return false
}

const mebi = 1 << 20

func (b *bench) memoryLimited(limit uint64, mode ...string) service.Launch {
	limits := service.Limits{service.MemoryMax: service.Of(limit)}
	if b.agent.Enforces().Limits[service.MemorySwapMax] {
		limits[service.MemorySwapMax] = service.Of(0)
	}
	return limited(b.plan(mode...), limits)
}

func lawMemoryMax(b *bench) {
	l := b.memoryLimited(24*mebi, "hog-memory", fmt.Sprint(64*mebi))
	if !b.enforces(l) {
		require.False(b, b.agent.Enforces().OOMVerdict)
		return
	}
	i := b.launch(l)
	require.Equal(b, service.Exit{Signal: syscall.SIGKILL}, i.exit())
	remains := i.release()
	require.True(b, b.agent.Enforces().OOMVerdict)
	require.Equal(b, service.OOMOwn, remains.OOM)
	require.Equal(b, strings.Trim(i.Ref().Cgroup, "/"), strings.Trim(remains.OOMLevel, "/"))
	require.True(b, remains.Usage.OOMKills.Set)
	require.NotZero(b, remains.Usage.OOMKills.Value)
}

func lawMemoryMaxAll(b *bench) {
	l := b.memoryLimited(24*mebi, "hog-memory", fmt.Sprint(64*mebi), fmt.Sprint(mebi), "3")
	if !b.enforces(l) {
		return
	}
	i := b.launch(l)
	require.Equal(b, service.Exit{Signal: syscall.SIGKILL}, i.exit())
	b.eventually(func() bool { return b.alive(l) == 0 }, "its children live on")
	require.Equal(b, service.OOMOwn, i.release().OOM)
}

func lawMemoryBelow(b *bench) {
	l := b.memoryLimited(64*mebi, "hog-memory", fmt.Sprint(16*mebi))
	if !b.enforces(l) {
		return
	}
	i := b.launch(l)
	i.ready()
	i.lives()
	usage, err := i.Usage(b.within())
	require.NoError(b, err)
	require.GreaterOrEqual(b, usage.Memory, uint64(16*mebi))
	require.Equal(b, service.OOMNone, i.release().OOM)
}

func lawPidsMax(b *bench) {
	const most = 30
	l := limited(b.plan("fork", "100"), service.Limits{service.PidsMax: service.Of(most)})
	if !b.enforces(l) {
		return
	}
	i := b.launch(l)
	i.says("resource temporarily unavailable")
	i.ready()
	i.lives()
	require.Less(b, b.alive(l), most+1)
	require.Greater(b, b.alive(l), most/2, "threads count too, but not that many")
	usage, err := i.Usage(b.within())
	require.NoError(b, err)
	require.Equal(b, service.Of(most), usage.Pids)
}

// getsCPU wants a busy process to get its percentage of one core, by its own
// clock, not the cgroup's. There are several tries, because the machine under
// an emulated one may stall: then the process gets less, or is charged for time
// in which nothing ran.
func (b *bench) getsCPU(pid int, percent float64) {
	b.Helper()
	const tolerance = 2
	var tries []float64
	for start := time.Now(); time.Since(start) < patience(); {
		before, ok := statOf(pid)
		require.True(b, ok)
		began := time.Now()
		time.Sleep(3 * time.Second) // what is measured needs its time
		after, ok := statOf(pid)
		require.True(b, ok)
		used := time.Duration(after.ticks-before.ticks) * 10 * time.Millisecond // USER_HZ is 100 on Linux
		gets := 100 * float64(used) / float64(time.Since(began))
		if math.Abs(gets-percent) <= tolerance {
			return
		}
		tries = append(tries, gets)
	}
	b.Fatalf("it may have %v percent of one core and gets %.1f", percent, tries)
}

func lawCPUMax(b *bench) {
	l := limited(b.plan("hog-cpu", "2"), service.Limits{service.CPUMax: service.Of(20 * service.UsecPerPercent)})
	if !b.enforces(l) {
		return
	}
	i := b.launch(l)
	i.ready()
	b.getsCPU(i.Ref().PID, 20)
	usage, err := i.Usage(b.within())
	require.NoError(b, err)
	require.True(b, usage.Throttled.Set)
	require.NotZero(b, usage.Throttled.Value)
	require.NotZero(b, usage.ThrottledPeriods.Value)
	last := i.release().Usage // with a last reading before the kill
	require.GreaterOrEqual(b, last.Throttled.Value, usage.Throttled.Value)
	require.GreaterOrEqual(b, last.ThrottledPeriods.Value, usage.ThrottledPeriods.Value)
}

func lawCPUChange(b *bench) {
	l := limited(b.plan("hog-cpu", "1"), service.Limits{service.CPUMax: service.Of(50 * service.UsecPerPercent)})
	if !b.enforces(l) {
		return
	}
	i := b.launch(l)
	i.ready()
	_, err := i.Limit(b.within(), service.Limits{service.CPUMax: service.Of(10 * service.UsecPerPercent)})
	require.NoError(b, err)
	b.getsCPU(i.Ref().PID, 10)
}
