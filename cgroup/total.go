package cgroup

import (
	"errors"
	"fmt"
	"time"

	"github.com/containerd/cgroups/v3/cgroup2"
	"github.com/containerd/cgroups/v3/cgroup2/stats"
	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

// Total is what the group and all in it have used since it was made, without the part
// of some groups in it. One of those that is not there has no part. Pressure is that of
// the whole group, for the kernel does not tell whose it is; memory that the kernel holds
// and the peaks are unset. Else it is as Usage, and not for what is asked often.
func (g Group) Total(without ...Group) (service.Usage, error) {
	total, err := g.stat()
	if err != nil {
		return service.Usage{}, err
	}
	for _, part := range without {
		u, err := part.stat()
		if gone(err) || errors.Is(err, errGone) {
			continue
		}
		if err != nil {
			return service.Usage{}, err
		}
		take(&total, u)
	}
	return total, nil
}

// stat has containerd's package read the counters. It says zero for a file that is
// missing or can not be read, and so the files are looked at first.
func (g Group) stat() (service.Usage, error) {
	d, err := g.open()
	if err != nil {
		return service.Usage{}, err
	}
	defer d.Close()
	there := map[string]bool{}
	for _, name := range []string{"cpu.stat", "memory.current", "memory.stat", "memory.events", "memory.swap.current", "pids.current", "io.stat"} {
		if there[name], err = d.readable(name); err != nil {
			return service.Usage{}, fmt.Errorf("read the counters of %s: %w", g.file(""), err)
		}
	}
	m, err := cgroup2.Load(g.path, cgroup2.WithMountpoint(g.tree.root))
	if err != nil {
		return service.Usage{}, fmt.Errorf("read the counters of %s: %w", g.file(""), err)
	}
	s, err := m.StatFiltered(cgroup2.StatCPU | cgroup2.StatMemory | cgroup2.StatMemoryEvents | cgroup2.StatPids | cgroup2.StatIO)
	if err != nil {
		return service.Usage{}, fmt.Errorf("read the counters of %s: %w", g.file(""), err)
	}
	// Every group has cpu.stat. One that has lost it was removed while it was read, and
	// maybe made anew.
	still, err := d.has("cpu.stat")
	if err != nil {
		return service.Usage{}, err
	}
	if !there["cpu.stat"] || !still {
		return service.Usage{}, fmt.Errorf("read the counters of %s: %w", g.file(""), errGone)
	}
	return usageOf(s, there), nil
}

// readable tells whether d holds the file; that it may not be read is an error.
func (d *dir) readable(name string) (bool, error) {
	f, err := d.openFile(name, unix.O_RDONLY)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, f.Close()
}

// usageOf takes from s what comes from files that are there.
func usageOf(s *stats.Metrics, there map[string]bool) service.Usage {
	of := func(file string, n uint64) service.Quota { return service.Quota{Set: there[file], Value: n} }
	u := service.Usage{
		Source:         "cgroup",
		Memory:         s.GetMemory().GetUsage(),
		Swap:           of("memory.swap.current", s.GetMemory().GetSwapUsage()),
		Anon:           of("memory.stat", s.GetMemory().GetAnon()),
		File:           of("memory.stat", s.GetMemory().GetFile()),
		CPUTime:        time.Duration(s.GetCPU().GetUsageUsec()) * time.Microsecond,
		User:           of("cpu.stat", s.GetCPU().GetUserUsec()),
		System:         of("cpu.stat", s.GetCPU().GetSystemUsec()),
		Pids:           of("pids.current", s.GetPids().GetCurrent()),
		OOMKills:       of("memory.events", s.GetMemoryEvents().GetOomKill()),
		MemoryPressure: pressureOf(s.GetMemory().GetPSI()),
		CPUPressure:    pressureOf(s.GetCPU().GetPSI()),
		IOPressure:     pressureOf(s.GetIo().GetPSI()),
	}
	if there["io.stat"] {
		zero := service.Of(0)
		u.IO = service.IO{ReadBytes: zero, WriteBytes: zero, Reads: zero, Writes: zero}
	}
	for _, e := range s.GetIo().GetUsage() {
		u.IO.ReadBytes.Value += e.GetRbytes()
		u.IO.WriteBytes.Value += e.GetWbytes()
		u.IO.Reads.Value += e.GetRios()
		u.IO.Writes.Value += e.GetWios()
	}
	return u
}

func pressureOf(p *stats.PSIStats) service.Pressure {
	return service.Pressure{Some: stallOf(p.GetSome()), Full: stallOf(p.GetFull())}
}

func stallOf(p *stats.PSIData) service.Stall {
	if p == nil {
		return service.Stall{}
	}
	return service.Stall{Set: true, Avg10: p.GetAvg10(), Avg60: p.GetAvg60(), Total: time.Duration(p.GetTotal()) * time.Microsecond}
}

// take takes a part off the total. The two were not read at the same moment: what
// would be less than nothing is nothing.
func take(total *service.Usage, part service.Usage) {
	total.Memory -= min(total.Memory, part.Memory)
	total.CPUTime -= min(total.CPUTime, part.CPUTime)
	for _, q := range []struct {
		of   *service.Quota
		part service.Quota
	}{
		{&total.Swap, part.Swap}, {&total.Anon, part.Anon}, {&total.File, part.File}, {&total.User, part.User}, {&total.System, part.System},
		{&total.Pids, part.Pids}, {&total.OOMKills, part.OOMKills}, {&total.IO.ReadBytes, part.IO.ReadBytes},
		{&total.IO.WriteBytes, part.IO.WriteBytes}, {&total.IO.Reads, part.IO.Reads}, {&total.IO.Writes, part.IO.Writes},
	} {
		q.of.Value -= min(q.of.Value, q.part.Value)
	}
}
