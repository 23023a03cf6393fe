package procfs

import (
	"errors"
	"fmt"
	"time"

	prometheus "github.com/prometheus/procfs"
	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

// SinceBoot is how long ago this host began to boot, the time included in which it
// was suspended (CLOCK_BOOTTIME). Setting the clock does not change it, and no agent
// begins it anew.
func SinceBoot() time.Duration {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		panic(fmt.Sprintf("cannot read CLOCK_BOOTTIME: %v", err)) // Linux has had it since 2.6.39
	}
	return time.Duration(now.Nano())
}

// Ticks is the time since boot that start ticks stand for.
func Ticks(n uint64) time.Duration { return time.Duration(n) * tick }

// System is what the whole host has and has used.
type System struct {
	MemoryTotal     uint64                // bytes
	MemoryAvailable uint64                // bytes that can be had without swapping
	SwapTotal       uint64                // bytes, 0 on a host without swap
	CPUBusy         time.Duration         // of all CPUs together, since boot: all but idle and waiting for IO
	CPUs            map[int]time.Duration // of each CPU that is online, likewise
}

// Busy is how much CPU time was used since an earlier look, on all CPUs or, if any are
// named, on those that were online at both looks.
func (s System) Busy(since System, on service.Numbers) (busy time.Duration) {
	if len(on) == 0 {
		return s.CPUBusy - since.CPUBusy
	}
	for cpu, now := range s.CPUs {
		if before, known := since.CPUs[cpu]; known && on.Has(cpu) {
			busy += now - before
		}
	}
	return busy
}

// System reads /proc/meminfo and /proc/stat.
func (f FS) System() (System, error) {
	memory, err := f.host.Meminfo()
	if err != nil {
		return System{}, fmt.Errorf("cannot read the host's memory: %w", err)
	}
	if memory.MemTotalBytes == nil || memory.MemAvailableBytes == nil {
		return System{}, errors.New("cannot read the host's memory: MemTotal or MemAvailable is missing in meminfo")
	}
	stat, err := f.host.Stat()
	if err != nil {
		return System{}, fmt.Errorf("cannot read the host's CPU time: %w", err)
	}
	s := System{
		MemoryTotal:     *memory.MemTotalBytes,
		MemoryAvailable: *memory.MemAvailableBytes,
		CPUBusy:         busy(stat.CPUTotal),
		CPUs:            map[int]time.Duration{},
	}
	for cpu, times := range stat.CPU {
		s.CPUs[int(cpu)] = busy(times)
	}
	if memory.SwapTotalBytes != nil {
		s.SwapTotal = *memory.SwapTotalBytes
	}
	return s, nil
}

func busy(cpu prometheus.CPUStat) time.Duration {
	// Guest time is part of user and nice time already (proc_stat(5)).
	seconds := cpu.User + cpu.Nice + cpu.System + cpu.IRQ + cpu.SoftIRQ
	return time.Duration(seconds * float64(time.Second))
}
