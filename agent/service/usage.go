package service

import "time"

// Usage is what a service has used, as its cgroup or /proc counts it. A Quota
// that is not Set is something this host does not count: absent is not zero.
// The files are described in Documentation/admin-guide/cgroup-v2.rst.
type Usage struct {
	Source string // "cgroup" or "procfs"

	Memory     uint64 // bytes now
	MemoryPeak Quota  // bytes
	Swap       Quota  // bytes
	Anon       Quota  // bytes of Memory that are anonymous
	File       Quota  // bytes of Memory that are page cache
	Inactive   Quota  // bytes of File that were not read again: the first that the kernel takes back, at no cost
	Kernel     Quota  // bytes of Memory that the kernel holds for it: page tables, stacks, slabs

	CPUTime          time.Duration // user + system since the incarnation began
	User             Quota         // microseconds of CPUTime in the program
	System           Quota         // microseconds of CPUTime in the kernel
	CPUPercent       float64       // of one core, between the two latest readings; filled by byggvir
	Throttled        Quota         // microseconds spent throttled by cpu.max
	ThrottledPeriods Quota
	Periods          Quota // of cpu.max in which it wanted to run

	IO      IO         // of all devices together
	Devices []DeviceIO // of each that it used, where the host counts by device

	Pids     Quota // tasks now
	PidsPeak Quota // tasks, the most at a time
	OOMKills Quota // processes the OOM killer took

	MemoryPressure Pressure
	CPUPressure    Pressure
	IOPressure     Pressure
}

// IO is what was read from block devices and written to them since the
// incarnation began. What the page cache answered is not in it.
type IO struct {
	ReadBytes, WriteBytes Quota
	Reads, Writes         Quota // operations
}

// DeviceIO is IO of one block device.
type DeviceIO struct {
	Device string // "major:minor"
	IO     IO
}

// Pressure is how much time is lost for want of one resource
// (Documentation/accounting/psi.rst).
type Pressure struct {
	Some Stall // at least one task waits
	Full Stall // all that could run wait; unset for the CPU before Linux 5.13
}

// Stall is one line of a pressure file. Averages are in percent of the time.
type Stall struct {
	Set          bool
	Avg10, Avg60 float64       // over the latest 10 and 60 seconds
	Total        time.Duration // since the cgroup was made
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
