package service

import "time"

// Usage is what a service has used, as its cgroup or /proc counts it. A Quota
// that is not Set is something this host does not count: absent is not zero.
type Usage struct {
	Source string // "cgroup" or "procfs"

	Memory     uint64 // bytes now
	MemoryPeak Quota  // bytes
	Swap       Quota  // bytes
	Anon       Quota  // bytes of Memory that are anonymous
	File       Quota  // bytes of Memory that are page cache

	CPUTime          time.Duration // user + system since the incarnation began
	CPUPercent       float64       // of one core, between the two latest readings; filled by byggvir
	Throttled        Quota         // microseconds spent throttled by cpu.max
	ThrottledPeriods Quota

	Pids     Quota // tasks now
	OOMKills Quota // processes the OOM killer took
}

// Gauge is the part of a service's use that is looked at often.
type Gauge struct {
	Memory           Quota         // bytes now
	CPUTime          time.Duration // user + system since the incarnation began
	Periods          Quota         // of cpu.max that have passed while it wanted the CPU
	ThrottledPeriods Quota         // those in which it was held back
}

// Tally is how often the kernel has found a service at one of its limits.
type Tally struct {
	MemoryHigh Quota // times it was throttled above memory_high
	MemoryMax  Quota // times memory_max was about to be exceeded, and memory was taken back
	OOM        Quota // times that did not help
	OOMKills   Quota // processes that were killed for it
	PidsMax    Quota // forks that pids_max refused
}

// PressureOf is what tasks can be held up for (PSI, Documentation/accounting/psi.rst).
type PressureOf uint8

// The pressures.
const (
	MemoryPressure PressureOf = iota
	CPUPressure
	IOPressure
	NumPressures
)

var pressureNames = [NumPressures]string{"memory", "cpu", "io"}

func (p PressureOf) String() string { return pressureNames[p] }
