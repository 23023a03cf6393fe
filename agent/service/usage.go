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
