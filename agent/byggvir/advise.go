package byggvir

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
)

// How long a service has to be looked at for advice, for advice that is worth more than
// a hint, and for all that happens in a day to be in it.
const (
	leastWatched  = time.Minute
	mediumWatched = time.Hour
	highWatched   = 20 * time.Hour
)

// What is added to what was seen, in percent. Memory is known to the byte, since the
// kernel keeps its peak; how busy a second is depends on where it begins.
const (
	memoryMargin = 5
	cpuMargin    = 10
	pidsMargin   = 50
	// spike is how far the most may be above what is usual without being one.
	spike = 20
	// short is what is added to a limit that a service has run into: what it would
	// have used without is not known.
	short = 50
)

// The least that is advised: a start itself takes about 4 MiB in a cgroup of ours, and
// what nearly sleeps has to wake up.
const (
	leastMemory = 8 << 20
	leastCPU    = 5 // percent
	leastPids   = 16
)

// When a service is taken to be short of something.
const (
	shortThrottled = 5  // percent of the periods
	shortPressure  = 5  // percent of the time
	shortOfMemory  = 97 // percent of memory_max
)

// Advise tells what limits would fit what samples tell, which are in order, of a service
// for which limits hold, on a host. It refuses when there is too little to go by.
func Advise(samples []service.Sample, holds service.Applied, host service.SystemUsage) (service.Advice, error) {
	watched := time.Duration(0)
	for _, s := range samples {
		watched += s.Measured
	}
	if watched < leastWatched {
		return service.Advice{}, fmt.Errorf("it was looked at for %v, and there is no advice before %v; ask again later", watched.Round(time.Second), leastWatched)
	}
	a := advice{holds: holds, host: host, Advice: service.Advice{
		Since: samples[0].Began, Watched: watched, Step: samples[len(samples)-1].Step, Samples: len(samples),
		Evidence: evidenceOf(samples), Confidence: service.ConfidenceHigh,
	}}
	switch {
	case watched < mediumWatched:
		a.doubt(service.ConfidenceLow, "it was looked at for %v", watched.Round(time.Second))
	case watched < highWatched:
		a.doubt(service.ConfidenceMedium, "it was looked at for %v, which is no whole day", watched.Round(time.Minute))
	}
	a.memory()
	a.cpu()
	a.pids()
	a.within(service.MemoryLow, service.MemoryMax)
	a.within(service.MemoryMin, service.MemoryMax)
	a.within(service.CPUBurst, service.CPUMax)
	return a.Advice, nil
}

// advice is an Advice that is being made.
type advice struct {
	service.Advice
	holds service.Applied
	host  service.SystemUsage
}

// doubt notes why the confidence is no more than c.
func (a *advice) doubt(c service.Confidence, format string, args ...any) {
	why := fmt.Sprintf(format, args...)
	if a.Doubt != "" {
		why = a.Doubt + "; " + why
	}
	a.Confidence, a.Doubt = min(a.Confidence, c), why
}

// advise notes what a limit would be.
func (a *advice) advise(r service.Resource, value uint64, format string, args ...any) {
	a.Limits = append(a.Limits, service.LimitAdvice{Resource: r, Now: a.own(r), Advised: service.Of(value), Enforced: a.holds[r].Enforced, Why: fmt.Sprintf(format, args...)})
}

// within lowers what may not be above a limit that is advised: together with it that
// would be refused.
func (a *advice) within(r, top service.Resource) {
	at := slices.IndexFunc(a.Limits, func(l service.LimitAdvice) bool { return l.Resource == top })
	if at < 0 {
		return
	}
	if most, now := a.Limits[at].Advised, a.own(r); bounded(now) && now.Value > most.Value {
		a.advise(r, most.Value, "it can not be above %s", top)
	}
}

// own is the service's own limit. What enforcement has it for now is none.
func (a *advice) own(r service.Resource) service.Quota {
	held := a.holds[r]
	switch {
	case held.Instead.Set && !held.Requested.Set:
		return r.Free()
	case held.Applied.Set && !held.Instead.Set:
		return held.Applied
	}
	return held.Requested
}

// bound is what bounds the service, be it set above it; 0 for nothing.
func (a *advice) bound(r service.Resource) uint64 {
	for _, q := range []service.Quota{a.holds[r].Effective, a.holds[r].Requested} {
		if bounded(q) {
			return q.Value
		}
	}
	return 0
}

func (a *advice) memory() {
	peak, usual := a.Evidence.HeldPeak.Value, a.Evidence.HeldP95.Value
	if !a.Evidence.HeldPeak.Set {
		return
	}
	if why := a.shortOfMemory(); why != "" {
		value := mebibytes(more(max(peak, a.bound(service.MemoryMax)), short))
		a.doubt(service.ConfidenceLow, "it was short of memory, so nobody knows how much it would hold")
		a.advise(service.MemoryMax, min(value, a.allMemory()), "%s: %d %% more, then look again", why, short)
		a.advise(service.MemoryHigh, service.Unlimited, "it is to show what it needs first")
		return
	}
	most := max(mebibytes(more(peak, memoryMargin)), leastMemory)
	a.advise(service.MemoryMax, min(most, a.allMemory()), "it held %s at most, cache that is taken back at no cost left out, and %d %% more", service.FormatSize(mebibytes(peak)), memoryMargin)
	if peak > more(usual, spike) {
		a.advise(service.MemoryHigh, service.Unlimited, "it held %s or less in 95 of 100 samples, but needs far more at times, when it would be held up", service.FormatSize(mebibytes(usual)))
		return
	}
	a.advise(service.MemoryHigh, min(max(mebibytes(max(peak, more(usual, memoryMargin))), leastMemory), most, a.allMemory()),
		"it held %s or less in 95 of 100 samples, and not much more in the others: above it cache is given up", service.FormatSize(mebibytes(usual)))
}

// shortOfMemory says how it shows that the service would have used more, "" when it does
// not.
func (a *advice) shortOfMemory() string {
	e := a.Evidence
	switch limit := cmp.Or(min(a.bound(service.MemoryMax), a.bound(service.MemoryHigh)), a.bound(service.MemoryMax), a.bound(service.MemoryHigh)); {
	case e.OOMKills.Value > 0:
		return fmt.Sprintf("%d of its processes were killed for want of memory", e.OOMKills.Value)
	case e.Pressure[service.MemoryPressure].Percent >= shortPressure:
		return fmt.Sprintf("it waited for memory for %.1f %% of the time", e.Pressure[service.MemoryPressure].Percent)
	case limit > 0 && e.HeldPeak.Value >= limit/100*shortOfMemory:
		return fmt.Sprintf("it held %s, which is all that it may", service.FormatSize(mebibytes(e.HeldPeak.Value)))
	}
	return ""
}

func (a *advice) cpu() {
	e := a.Evidence
	if !e.CPUP95.Set {
		return
	}
	percent, why := math.Ceil(e.CPUP95.Percent*(100+cpuMargin)/100), fmt.Sprintf("its busiest second was %.1f %% of a core or less in 95 of 100 samples, and %d %% more", e.CPUP95.Percent, cpuMargin)
	if e.CPUPeak.Percent > max(e.CPUP95.Percent*(100+spike)/100, leastCPU) {
		why += fmt.Sprintf("; at times, as when it starts, it had up to %.1f %%, and is slower then", e.CPUPeak.Percent)
	}
	if e.Throttled.Percent >= shortThrottled {
		now := float64(a.bound(service.CPUMax)) / service.UsecPerPercent
		percent = math.Ceil(max(e.CPUP95.Percent, now) * (100 + short) / 100)
		why = fmt.Sprintf("its limit held it back in %.1f %% of the periods: %d %% more, then look again", e.Throttled.Percent, short)
		a.doubt(service.ConfidenceLow, "it was held back, so nobody knows how much CPU time it would use")
	}
	percent = max(percent, leastCPU)
	if a.host.Cores > 0 {
		percent = min(percent, 100*float64(a.host.Cores))
	}
	a.advise(service.CPUMax, uint64(percent*service.UsecPerPercent), "%s", why)
}

func (a *advice) pids() {
	peak := a.Evidence.PidsPeak
	if !peak.Set {
		return
	}
	room := max(more(peak.Value, pidsMargin)-peak.Value, leastPids)
	if limit := a.bound(service.PidsMax); limit > 0 && peak.Value >= limit {
		a.doubt(service.ConfidenceLow, "it had all the tasks that it may")
	}
	a.advise(service.PidsMax, peak.Value+room, "it had %d at most, and %d more", peak.Value, room)
}

func (a *advice) allMemory() uint64 { return cmp.Or(a.host.MemoryTotal, service.Unlimited-1) }

// more is n and some percent of it.
func more(n uint64, percent uint64) uint64 { return n + (n*percent+99)/100 }

// mebibytes rounds up.
func mebibytes(n uint64) uint64 { return (n + 1<<20 - 1) &^ (1<<20 - 1) }

func evidenceOf(samples []service.Sample) (e service.Evidence) {
	most := func(value func(service.Sample) service.Quota) (peak service.Quota) {
		for _, s := range samples {
			if q := value(s); q.Set && (!peak.Set || q.Value > peak.Value) {
				peak = q
			}
		}
		return peak
	}
	e.MemoryPeak = most(func(s service.Sample) service.Quota { return s.MemoryPeak })
	e.HeldPeak = most(func(s service.Sample) service.Quota { return s.Held })
	e.PidsPeak = most(func(s service.Sample) service.Quota { return s.PidsPeak })
	var held []uint64
	var busiest []float64
	for _, s := range samples {
		if s.Held.Set {
			held = append(held, s.Held.Value)
		}
		if s.CPUPeak.Set {
			busiest = append(busiest, s.CPUPeak.Percent)
		}
		if s.OOMKills.Set {
			e.OOMKills = service.Of(e.OOMKills.Value + s.OOMKills.Value)
		}
	}
	if len(held) > 0 {
		e.HeldP95 = service.Of(p95(held))
	}
	if len(busiest) > 0 {
		e.CPUP95 = service.Share{Percent: p95(busiest), Set: true}
		e.CPUPeak = service.Share{Percent: slices.Max(busiest), Set: true}
	}
	e.CPUMean = mean(samples, func(s service.Sample) service.Share { return s.CPU })
	e.Throttled = mean(samples, func(s service.Sample) service.Share { return s.Throttled })
	for p := range e.Pressure {
		e.Pressure[p] = mean(samples, func(s service.Sample) service.Share { return s.Pressure[p] })
	}
	return e
}

// p95 is the least of values that 95 of 100 are not above. It sorts them.
func p95[T cmp.Ordered](values []T) T {
	slices.Sort(values)
	return values[(len(values)*95+99)/100-1]
}

// mean weighs each share by how long it is of.
func mean(samples []service.Sample, value func(service.Sample) service.Share) (out service.Share) {
	sum, over := 0.0, 0.0
	for _, s := range samples {
		if v := value(s); v.Set {
			sum, over = sum+v.Percent*s.Measured.Seconds(), over+s.Measured.Seconds()
		}
	}
	if over == 0 {
		return service.Share{}
	}
	return service.Share{Percent: sum / over, Set: true}
}
