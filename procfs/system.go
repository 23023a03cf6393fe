package procfs

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
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
	MemoryTotal     uint64        // bytes
	MemoryAvailable uint64        // bytes that can be had without swapping
	SwapTotal       uint64        // bytes, 0 on a host without swap
	CPUBusy         time.Duration // summed over the cores, since boot: all but idle and waiting for IO
	Cores           int           // online
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
	cpu := stat.CPUTotal
	// Guest time is part of user and nice time already (proc_stat(5)).
	busy := cpu.User + cpu.Nice + cpu.System + cpu.IRQ + cpu.SoftIRQ
	s := System{
		MemoryTotal:     *memory.MemTotalBytes,
		MemoryAvailable: *memory.MemAvailableBytes,
		CPUBusy:         time.Duration(busy * float64(time.Second)),
		Cores:           len(stat.CPU),
	}
	if memory.SwapTotalBytes != nil {
		s.SwapTotal = *memory.SwapTotalBytes
	}
	return s, nil
}
