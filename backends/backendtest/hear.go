package backendtest

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
)

func hearLaws() []law {
	return []law{
		{says: "who has no cgroup is deaf, and says so", only: real, check: lawDeaf},
		{says: "what others write to the files of a cgroup is heard", only: caged, check: lawHearWrites},
		{says: "what the kernel counts of memory is heard", only: caged, check: lawHearMemory},
		{says: "what the kernel counts of refused forks is heard", only: caged, check: lawHearForks},
		{says: "pressure is heard, of some and of all tasks", only: caged, check: lawPressure},
		{says: "what is looked at often is read through files that stay open", only: caged, check: lawGauge},
		{says: "a service that has gone is heard no more, and listening to it leaks nothing", only: caged, check: lawHearGone},
	}
}

// hears listens, and returns what tells whether a file was heard since.
func (i *incarnation) hears() func(file string) bool {
	i.bench.Helper()
	heard := make(chan string, 10_000)
	leave, err := i.Hear(func(file string) {
		select {
		case heard <- file:
		default:
		}
	})
	require.NoError(i.bench, err)
	i.bench.Cleanup(leave)
	return func(file string) bool {
		for {
			select {
			case f := <-heard:
				if f == file {
					return true
				}
			default:
				return false
			}
		}
	}
}

func lawDeaf(b *bench) {
	if b.CgroupRoot != "" {
		return // the other laws are of this one
	}
	i := b.start("sleep")
	_, err := i.Hear(func(string) {})
	require.ErrorIs(b, err, backends.ErrDeaf)
	_, err = i.Gauge()
	require.ErrorIs(b, err, backends.ErrDeaf)
	_, err = i.Tally()
	require.ErrorIs(b, err, backends.ErrDeaf)
	_, err = i.Press(service.MemoryPressure, false, time.Second, 2*time.Second, func() {})
	require.ErrorIs(b, err, backends.ErrDeaf)
}

func lawHearWrites(b *bench) {
	i := b.start("sleep")
	heard := i.hears()
	require.NoError(b, os.WriteFile(filepath.Join(b.CgroupRoot, i.Ref().Cgroup, "pids.max"), []byte("100"), 0))
	b.eventually(func() bool { return heard("pids.max") }, "nobody heard what was written to pids.max")
}

func lawHearMemory(b *bench) {
	l := limited(b.plan("cache", usr, "0", "67108864"), service.Limits{service.MemoryHigh: service.Of(16 * mebi)})
	if !b.enforces(l) {
		return
	}
	i := b.launch(l)
	heard := i.hears()
	b.eventually(func() bool { return heard("memory.events") }, "nobody heard that memory_high was hit")
}

func lawHearForks(b *bench) {
	l := limited(b.plan("fork-bomb", "plain", "0"), service.Limits{service.PidsMax: service.Of(16)})
	if !b.enforces(l) {
		return
	}
	i := b.launch(l)
	heard := i.hears()
	b.eventually(func() bool { return heard("pids.events") }, "nobody heard that pids_max was hit")
}

// lawPressure has a service wait for memory that memory_high does not give it.
func lawPressure(b *bench) {
	l := limited(b.plan("hog-memory", fmt.Sprint(200*mebi)), service.Limits{
		service.MemoryHigh: service.Of(16 * mebi), service.MemoryMax: service.Of(100 * mebi), service.MemorySwapMax: service.Of(0),
	})
	if !b.enforces(l) {
		return
	}
	i := b.launch(l)
	for _, full := range []bool{false, true} {
		told := make(chan struct{}, 1000)
		leave, err := i.Press(service.MemoryPressure, full, time.Second, 2*time.Second, func() { told <- struct{}{} })
		require.NoError(b, err)
		for range 2 { // again and again
			b.eventually(func() bool { return len(told) > 0 }, "no pressure is told (full: %v)", full)
			<-told
		}
		leave()
		leave()
	}
	leave, err := i.Press(service.MemoryPressure, true, time.Second, 2*time.Second, func() {})
	require.NoError(b, err)
	i.release()
	leave()
}

func lawGauge(b *bench) {
	l := limited(b.plan("hog-cpu", "1"), service.Limits{service.CPUMax: service.Of(20 * service.UsecPerPercent)})
	if !b.enforces(l) {
		return
	}
	i := b.launch(l)
	i.ready()
	gauge, err := i.Gauge()
	require.NoError(b, err)
	first, err := gauge.Read()
	require.NoError(b, err)
	require.NotZero(b, first.Memory.Value)
	b.eventually(func() bool {
		now, err := gauge.Read()
		require.NoError(b, err)
		return now.CPUTime > first.CPUTime && now.Periods.Value > first.Periods.Value && now.ThrottledPeriods.Value > first.ThrottledPeriods.Value
	}, "its CPU time is not counted")
	cache, err := gauge.Cache()
	require.NoError(b, err)
	require.True(b, cache.Set)
	require.LessOrEqual(b, cache.Value, i.usage().Memory+mebi)
	i.release()
	_, err = gauge.Read()
	require.Error(b, err)
	_, err = gauge.Cache()
	require.Error(b, err)
	require.NoError(b, gauge.Close())
}

func lawHearGone(b *bench) {
	i := b.start("sleep")
	heard := i.hears()
	i.release()
	require.NoError(b, i.Close())
	for range 100 {
		again := b.start("sleep")
		again.hears()
		again.release()
	}
	require.False(b, heard("memory.events"))
}
