package backendtest

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
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
		{says: "with oom_group false it ends one process, and the others live", only: real, check: lawOOMGroup},
		{says: "one that stays below memory_max lives", only: real, check: lawMemoryBelow},
		{says: "pids_max makes a fork fail, and nobody is killed", only: real, check: lawPidsMax},
		{says: "cpu_percent 20 gives 20 percent", only: real, alone: true, check: lawCPUMax},
		{says: "memory_high takes memory back, and nobody is killed", only: caged, check: lawMemoryHigh},
		{says: "memory_low keeps memory while others lose theirs", only: caged, alone: true, check: lawMemoryKept(service.MemoryLow)},
		{says: "memory_min keeps memory while others lose theirs", only: caged, alone: true, check: lawMemoryKept(service.MemoryMin)},
		{says: "what was kept for a service is kept for nobody when it has gone", only: caged, alone: true, check: lawNothingKept},
		{says: "cpu_weight shares out the CPU", only: caged, alone: true, check: lawCPUWeight},
		{says: "cpu_idle gets what nobody else wants", only: caged, alone: true, check: lawCPUIdle},
		{says: "cpu_idle begins and ends on a service that runs", only: caged, check: lawCPUIdleChange},
		{says: "cpu_burst_percent lets saved time be used", only: caged, alone: true, check: lawCPUBurst},
		{says: "cpu_percent and cpu_burst_percent change together, up and down", only: caged, check: lawCPUBurstChange},
		{says: "a limit that is lifted is lifted", only: caged, check: lawLifted},
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

func lawOOMGroup(b *bench) {
	const children = 3
	l := b.memoryLimited(24*mebi, "hog-memory", fmt.Sprint(64*mebi), fmt.Sprint(mebi), fmt.Sprint(children))
	l.Limits[service.OOMGroup] = service.Of(0)
	l.Spec.Limits = l.Limits
	if !b.enforces(l) {
		return
	}
	i := b.launch(l)
	require.Equal(b, service.Exit{Signal: syscall.SIGKILL}, i.exit())
	require.Equal(b, uint64(1), i.counter("memory.events", "oom_kill"))
	require.Equal(b, children, b.alive(l))
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
	for start := time.Now(); time.Since(start) < patience; {
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

func lawLifted(b *bench) {
	for _, r := range []service.Resource{service.CPUMax, service.PidsMax, service.MemoryHigh, service.MemoryMax, service.MemorySwapMax} {
		if !b.agent.Enforces().Limits[r] {
			continue
		}
		var limits service.Limits
		limits[r] = service.Of(64 * mebi)
		if r == service.CPUMax {
			limits[r] = service.Of(20 * service.UsecPerPercent)
		}
		if r == service.PidsMax {
			limits[r] = service.Of(50)
		}
		i := b.launch(limited(b.plan("sleep"), limits))
		limits[r] = service.Of(service.Unlimited)
		_, err := i.Limit(b.within(), limits)
		require.NoError(b, err, r)
		applied, err := i.Limits(b.within())
		require.NoError(b, err, r)
		require.Contains(b, []service.Quota{{}, service.Of(service.Unlimited)}, applied[r].Applied, r)
		i.release()
	}
}

// usr is what cache reads of: every host has some hundred megabytes of it on a disk.
const usr = "/usr"

// cached is the memory of files that a service is charged for.
func (i *incarnation) cached() uint64 {
	i.bench.Helper()
	return i.counter("memory.stat", "file")
}

// counter reads one line of a flat-keyed file of the cgroup.
func (i *incarnation) counter(file, key string) uint64 {
	i.bench.Helper()
	for line := range strings.Lines(i.bench.cgroupFile(i.Ref(), file)) {
		if name, value, _ := strings.Cut(strings.TrimSpace(line), " "); name == key {
			n, err := strconv.ParseUint(value, 10, 64)
			require.NoError(i.bench, err)
			return n
		}
	}
	i.bench.Fatalf("%s has no %s", file, key)
	return 0
}

func lawMemoryHigh(b *bench) {
	const high = 16 * mebi
	l := limited(b.plan("cache", usr, "0", fmt.Sprint(64*mebi)), service.Limits{service.MemoryHigh: service.Of(high)})
	if !b.enforces(l) {
		return
	}
	i := b.launch(l)
	i.ready()
	require.LessOrEqual(b, i.cached(), uint64(high))
	require.NotZero(b, i.counter("memory.events", "high"))
	require.Equal(b, service.OOMNone, i.release().OOM)
}

// lawMemoryKept takes memory from all services together, and looks who has lost it.
func lawMemoryKept(r service.Resource) func(*bench) {
	return func(b *bench) {
		const each = 16 * mebi
		var limits service.Limits
		limits[r] = service.Of(2 * each)
		l := limited(b.plan("cache", usr, "0", fmt.Sprint(each)), limits)
		if !b.enforces(l) {
			return
		}
		kept := b.launch(l)
		kept.ready()
		other := b.start("cache", usr, fmt.Sprint(each), fmt.Sprint(each))
		before, theirs := kept.cached(), other.cached()
		require.Greater(b, before, uint64(each/2))
		require.Greater(b, theirs, uint64(each/2))
		b.eventually(func() bool {
			// What those before have left in the cache goes as well.
			b.reclaim(b.above(kept, other), theirs/4)
			return other.cached() < theirs/4
		}, "what nobody keeps is not taken")
		require.GreaterOrEqual(b, kept.cached(), before/8*7)
	}
}

// reclaim takes memory from what is in a cgroup, and kills nobody for it.
func (b *bench) reclaim(folder string, bytes uint64) {
	b.Helper()
	err := os.WriteFile(filepath.Join(folder, "memory.reclaim"), []byte(fmt.Sprint(bytes)), 0o600)
	if !errors.Is(err, syscall.EAGAIN) { // it was less
		require.NoError(b, err)
	}
}

// above is the folder of the lowest cgroup that both are in.
func (b *bench) above(i, other *incarnation) string {
	at := i.Ref().Cgroup
	for !strings.HasPrefix(other.Ref().Cgroup, at+"/") {
		at = filepath.Dir(at)
	}
	return filepath.Join(b.CgroupRoot, at)
}

func lawNothingKept(b *bench) {
	l := limited(b.plan("sleep"), service.Limits{service.MemoryLow: service.Of(8 * mebi), service.MemoryMin: service.Of(4 * mebi)})
	if !b.enforces(l) {
		return
	}
	above := b.above(b.start("sleep"), b.start("sleep")) // they stay, else it may go with the last
	keeps := func(low, min uint64) {
		b.Helper()
		for file, want := range map[string]uint64{"memory.low": low, "memory.min": min} {
			text, err := os.ReadFile(filepath.Join(above, file))
			require.NoError(b, err)
			require.Equal(b, fmt.Sprint(want), strings.TrimSpace(string(text)), file)
		}
	}
	keeps(0, 0)
	i := b.launch(l)
	keeps(8*mebi, 4*mebi)
	second := b.launch(limited(b.plan("sleep"), l.Limits))
	keeps(16*mebi, 8*mebi)
	_, err := i.Limit(b.within(), service.Limits{service.MemoryLow: service.Of(0)})
	require.NoError(b, err)
	keeps(8*mebi, 8*mebi)
	second.release()
	keeps(0, 4*mebi)
	i.release()
	keeps(0, 0)
}

// shares wants one of two busy services to get so many times as much CPU as the other,
// by their own clocks, while both want all cores. There are several tries, for the
// machine under an emulated one may stall, and the kernel moves threads about.
func (b *bench) shares(one, other service.Limits, low, high float64) {
	b.Helper()
	busy := func(limits service.Limits) *incarnation {
		i := b.launch(limited(b.plan("hog-cpu", fmt.Sprint(runtime.NumCPU())), limits))
		i.ready()
		return i
	}
	first, second := busy(one), busy(other)
	used := func(i *incarnation) float64 {
		stat, ok := statOf(i.Ref().PID)
		require.True(b, ok)
		return float64(stat.ticks)
	}
	var tries []float64
	for start := time.Now(); time.Since(start) < patience; {
		was, wasOther := used(first), used(second)
		b.eventually(func() bool { return used(first)+used(second)-was-wasOther > 400 }, "neither gets any CPU") // ticks of 10 ms
		ratio := (used(first) - was) / max(used(second)-wasOther, 1)
		if low <= ratio && ratio <= high {
			return
		}
		tries = append(tries, ratio)
	}
	b.Fatalf("one gets %.1f times as much as the other; %v to %v is right", tries, low, high)
}

func lawCPUWeight(b *bench) {
	if !b.agent.Enforces().Limits[service.CPUWeight] {
		return
	}
	b.shares(service.Limits{service.CPUWeight: service.Of(400)}, service.Limits{service.CPUWeight: service.Of(100)}, 3, 5)
}

func lawCPUIdle(b *bench) {
	if !b.agent.Enforces().Limits[service.CPUIdle] {
		return
	}
	b.shares(service.Limits{}, service.Limits{service.CPUIdle: service.Of(1)}, 10, math.Inf(1))
}

func lawCPUIdleChange(b *bench) {
	if !b.agent.Enforces().Limits[service.CPUIdle] {
		return
	}
	i := b.start("sleep")
	for _, idle := range []uint64{1, 0, 1} {
		applied, err := i.Limit(b.within(), service.Limits{service.CPUIdle: service.Of(idle)})
		require.NoError(b, err)
		require.Equal(b, service.Of(idle), applied[service.CPUIdle].Applied)
		require.Equal(b, fmt.Sprint(idle), b.cgroupFile(i.Ref(), "cpu.idle"))
	}
	_, err := i.Limit(b.within(), service.Limits{service.CPUIdle: service.Of(0), service.CPUWeight: service.Of(200)})
	require.NoError(b, err)
	require.Equal(b, "200", b.cgroupFile(i.Ref(), "cpu.weight"))
}

func lawCPUBurst(b *bench) {
	const quota = 20 * service.UsecPerPercent
	if !b.agent.Enforces().Limits[service.CPUBurst] {
		return
	}
	bursts := func(burst uint64) (used func() uint64) {
		l := limited(b.plan("pulse", "60ms", "600ms"), service.Limits{service.CPUMax: service.Of(quota), service.CPUBurst: service.Of(burst)})
		i := b.launch(l)
		i.ready()
		b.eventually(func() bool { return i.counter("cpu.stat", "nr_throttled") > 3 }, "it needs no more than its quota")
		return func() uint64 { return i.counter("cpu.stat", "nr_bursts") }
	}
	with, without := bursts(quota), bursts(0)
	b.eventually(func() bool { return with() > 0 }, "it saves nothing")
	require.Zero(b, without())
}

func lawCPUBurstChange(b *bench) {
	if !b.agent.Enforces().Limits[service.CPUBurst] {
		return
	}
	both := func(quota, burst uint64) service.Limits {
		return service.Limits{service.CPUMax: service.Of(quota * service.UsecPerPercent), service.CPUBurst: service.Of(burst * service.UsecPerPercent)}
	}
	i := b.launch(limited(b.plan("sleep"), both(50, 40)))
	for _, change := range []service.Limits{both(20, 20), both(80, 80), both(30, 0), both(30, 10)} {
		applied, err := i.Limit(b.within(), change)
		require.NoError(b, err)
		require.Equal(b, change[service.CPUMax], applied[service.CPUMax].Applied)
		require.Equal(b, change[service.CPUBurst], applied[service.CPUBurst].Applied)
	}
}
