package service

import "time"

// Sample is what a service used in one step of its history. A figure that is not Set
// is one that the host does not count, or that was not read in this step: absent is
// not zero.
type Sample struct {
	Began    time.Time     // of the step, by the wall clock as it is now
	Step     time.Duration // its length
	Measured time.Duration // for how much of it the service was looked at

	Memory     Quota // bytes, at the last look
	MemoryPeak Quota // bytes, the most; between looks too, where the kernel keeps a peak and it rose
	Held       Quota // bytes that are no page cache, at a look, the most
	CPU        Share // of one core, the mean
	CPUPeak    Share // of one core, from one look to the next, the most
	Throttled  Share // of the periods of cpu.max in which it wanted to run, those in which it was held back
	Pids       Quota // tasks, at the last look
	PidsPeak   Quota // tasks, the most
	ReadBytes  Quota // from block devices, in this step
	WriteBytes Quota // likewise
	OOMKills   Quota // processes the OOM killer took, in this step

	Pressure [NumPressures]Share // of the time, that for which some task was held up
}

// Share is an amount in percent, which may be absent.
type Share struct {
	Percent float64
	Set     bool
}
