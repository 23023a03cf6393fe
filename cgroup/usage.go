package cgroup

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/containerd/cgroups/v3/cgroup2"
	"github.com/containerd/log"

	"github.com/gladsheim/gladsheim/agent/service"
)

// Usage reads the counters of the group and all below it. What the kernel does
// not count here is unset: containerd's Stat, which reads the files, says zero
// for a file that is missing, so their presence is looked at first. The one
// exception is Memory, which can not be unset: without the memory controller it
// is zero.
func (g Group) Usage() (service.Usage, error) {
	d, err := g.open()
	if err != nil {
		return service.Usage{}, err
	}
	defer d.Close()
	present := make(map[string]bool, len(usageFiles))
	for _, name := range usageFiles {
		if present[name], err = d.has(name); err != nil {
			return service.Usage{}, err
		}
	}
	silence()
	m, err := cgroup2.Load(g.path, cgroup2.WithMountpoint(g.tree.root))
	if err != nil {
		return service.Usage{}, fmt.Errorf("%s: %w", g.file(""), err)
	}
	s, err := m.StatFiltered(cgroup2.StatCPU | cgroup2.StatMemory | cgroup2.StatMemoryEvents | cgroup2.StatPids)
	if err != nil {
		return service.Usage{}, fmt.Errorf("read the counters of %s: %w", g.file(""), err)
	}
	counted := func(file string, n uint64) service.Quota {
		if !present[file] {
			return service.Quota{}
		}
		return service.Of(n)
	}
	return service.Usage{
		Source:     "cgroup",
		Memory:     s.Memory.Usage,
		MemoryPeak: counted("memory.peak", s.Memory.MaxUsage),
		Swap:       counted("memory.swap.current", s.Memory.SwapUsage),
		Anon:       counted("memory.stat", s.Memory.Anon),
		File:       counted("memory.stat", s.Memory.File),
		CPUTime:    time.Duration(s.CPU.UsageUsec) * time.Microsecond,
		// The throttling counters of cpu.stat come with the cpu controller.
		Throttled:        counted("cpu.max", s.CPU.ThrottledUsec),
		ThrottledPeriods: counted("cpu.max", s.CPU.NrThrottled),
		Pids:             counted("pids.current", s.Pids.Current),
		OOMKills:         counted("memory.events", s.MemoryEvents.GetOomKill()),
	}, nil
}

// Throttled reads how long, in microseconds, and in how many periods the group's
// own cpu.max has held it back (cpu.stat). Both are unset where the group has no
// cpu controller.
func (g Group) Throttled() (usec, periods service.Quota, err error) {
	d, err := g.open()
	if err != nil {
		return usec, periods, err
	}
	defer d.Close()
	stat, err := readEvents(d, "cpu.stat")
	return stat["throttled_usec"], stat["nr_throttled"], err
}

var usageFiles = []string{
	"memory.peak", "memory.swap.current", "memory.stat", "memory.events", "cpu.max", "pids.current",
}

// silence keeps containerd's package from printing to stderr what it could not
// read, e.g. when the group is removed at the same moment.
var silence = sync.OnceFunc(func() { log.L.Logger.SetOutput(io.Discard) })
