package service

import "time"

// Sample is what a service used in one step of its history. A figure that is not Set
// is one that the host does not count, or that was not read in this step: absent is
// not zero.
type Sample struct {
	Began    time.Time     // of the step, by the wall clock as it is now
	Step     time.Duration // its length
	Measured time.Duration // that it tells of: less when it was not looked at all the time, more when a look was late

	Memory     Quota // bytes, at the last look
	MemoryPeak Quota // bytes, the most; between looks too, where the kernel keeps a peak and it rose
	Held       Quota // likewise, of what is no cache that the kernel takes back at no cost (Usage.Inactive)
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

// Ended is when the step does.
func (s Sample) Ended() time.Time { return s.Began.Add(s.Step) }

// Used is what one service used since that was told before.
type Used struct {
	Service Name
	Sample
}

// Share is an amount in percent, which may be absent.
type Share struct {
	Percent float64
	Set     bool
}
