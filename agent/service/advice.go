package service

import "time"

// Advice is what limits of a service would fit what it used.
type Advice struct {
	Since      time.Time     // the first look
	Watched    time.Duration // for how much of the time since then it was looked at
	Step       time.Duration // of the samples that it was made from
	Samples    int
	Confidence Confidence
	Doubt      string // why the confidence is no higher; "" when it is high
	Evidence   Evidence
	Limits     []LimitAdvice
}

// Evidence is what was seen. What is not Set was not counted.
type Evidence struct {
	MemoryPeak Quota // bytes, page cache included
	KernelPeak Quota // bytes, of the instance that runs, as the kernel has it (memory.peak), page cache included
	HeldPeak   Quota // bytes, without the cache that the kernel takes back at no cost
	HeldP95    Quota // bytes that it held at most in 95 of 100 samples

	CPUMean Share // of one core
	CPUP95  Share // that its busiest second was at most in 95 of 100 samples
	CPUPeak Share // of its busiest second

	Throttled Share // of the periods of cpu.max, on average, those in which it was held back
	PidsPeak  Quota
	OOMKills  Quota // in all

	Pressure [NumPressures]Share // of the time, on average
}

// LimitAdvice is what one limit would be.
type LimitAdvice struct {
	Resource Resource
	Now      Quota // what holds, or would at the next start; not Set when nobody knows
	Advised  Quota
	Enforced bool // by this host
	Why      string
}

// Confidence is how far an Advice is to be trusted.
type Confidence uint8

// The confidences, numbered from 1 as on the wire.
const (
	ConfidenceLow Confidence = iota + 1
	ConfidenceMedium
	ConfidenceHigh
	NumConfidences
)

var confidenceNames = [NumConfidences]string{"", "low", "medium", "high"}

func (c Confidence) String() string { return confidenceNames[c] }
