package cgroup

import (
	"fmt"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
)

// Usage reads the counters of the group and all below it: a dozen small files,
// each of them once. What the kernel does not count here is unset. The one
// exception is Memory, which can not be unset: without the memory controller it
// is zero. A file that the kernel will not let us read, or that holds what it
// should not, is an error, never zero.
func (g Group) Usage() (service.Usage, error) {
	d, err := g.open()
	if err != nil {
		return service.Usage{}, err
	}
	defer d.Close()
	r := newReading(d)
	u := service.Usage{
		Source:         "cgroup",
		Memory:         r.number("memory.current").Value,
		MemoryPeak:     r.number("memory.peak"),
		Swap:           r.number("memory.swap.current"),
		Pids:           r.number("pids.current"),
		PidsPeak:       r.number("pids.peak"),
		MemoryPressure: r.pressure("memory.pressure"),
		CPUPressure:    r.pressure("cpu.pressure"),
		IOPressure:     r.pressure("io.pressure"),
	}
	r.keys("memory.stat", field{"anon", &u.Anon}, field{"file", &u.File}, field{"kernel", &u.Kernel},
		field{"inactive_file", &u.Inactive})
	r.keys("memory.events", field{"oom_kill", &u.OOMKills})
	u.IO, u.Devices = r.devices("io.stat")
	// The counters of the quota come with the cpu controller, those of the time are
	// in every group: that there are none says that the group is gone, and with it
	// all that was missed above.
	var used service.Quota
	r.keys("cpu.stat", field{"usage_usec", &used}, field{"user_usec", &u.User}, field{"system_usec", &u.System},
		field{"nr_periods", &u.Periods}, field{"nr_throttled", &u.ThrottledPeriods}, field{"throttled_usec", &u.Throttled})
	u.CPUTime = time.Duration(used.Value) * time.Microsecond
	if r.err == nil && !used.Set {
		r.err = fmt.Errorf("cpu.stat tells no usage_usec: %w", errGone)
	}
	if r.err != nil {
		return service.Usage{}, fmt.Errorf("read the counters of %s: %w", g.file(""), r.err)
	}
	return u, nil
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
	r := newReading(d)
	r.keys("cpu.stat", field{"throttled_usec", &usec}, field{"nr_throttled", &periods})
	return usec, periods, r.err
}
